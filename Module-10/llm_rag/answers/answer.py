"""A question answered from a store: retrieved, written, and every citation checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llm_core.generate import Sampling, generate, generate_by_transformers, stop_ids
from llm_core.model import GPT
from llm_data.tokenizers.fast import encode_documents
from torch import nn
from transformers import PreTrainedTokenizerFast

from llm_rag.answers.citations import LEAST_LETTERS, Citation, check_citations, is_supported
from llm_rag.answers.injection import like_orders, without_links
from llm_rag.answers.prompt import SYSTEM, make_prompt
from llm_rag.search.bm25 import words_of
from llm_rag.store.store import Passage, Store

Kind = Literal["generated", "extracted"]
# The model goes on from these words, so that it cites at all: a small one hardly does by itself. Whether it cites the
# right passage is not in them, and is checked.
BEGIN = "According to passage ["
NEXT = "\nQuestion:"  # a small model goes on with questions of its own, or closes a block: its answer has ended there


@dataclass(frozen=True)
class Answer:
    """An answer and what it rests on.

    Attributes:
        text: without links that the question did not name.
        kind: "generated", a model's words, or "extracted", a sentence of a passage.
        passages: `[n]` means `passages[n - 1]`.
        citations: each of the text's, checked.
        supported: each sentence cites a passage, and every citation holds by the rule of `citations.py`.
        removed: links that were taken out.
        orders: sentences of the passages that sound like orders, with the passages' numbers; advice only.
    """

    text: str
    kind: Kind
    passages: tuple[Passage, ...]
    citations: tuple[Citation, ...]
    supported: bool
    removed: tuple[str, ...] = ()
    orders: tuple[tuple[int, str], ...] = ()


def answer(
    question: str, store: Store, model: nn.Module, tokenizer: PreTrainedTokenizerFast, k: int = 5,
    method: str = "hybrid", budget: int = 1024, sampling: Sampling | None = None, system: str = SYSTEM,
    begin: str = BEGIN,
) -> Answer:  # fmt: skip
    """An answer in a model's words from the k best passages, as many of them as fit the budget.

    Args:
        question: in words.
        store: with its encoder, unless method="words".
        model, tokenizer: of `load_model`, with a chat template.
        k: passages that are looked for.
        method: "words", "vectors" or "hybrid".
        budget: tokens of the prompt.
        sampling: of the answer; greedy and at most 120 tokens by default.
        system: the rules.
        begin: words that the answer begins with, given to the model; "" for none.

    Raises:
        ValueError: for a question to which the store has no passage, and as `make_prompt`.
    """
    passages = found_for(question, store, k, method)
    return generated(question, passages, model, tokenizer, budget, sampling, system, begin)


def found_for(question: str, store: Store, k: int, method: str) -> list[Passage]:
    """The k best passages.

    Raises:
        ValueError: for an empty question, or when there are none.
    """
    if not question.strip():
        raise ValueError("the question is empty; ask something")
    passages = store.search(question, k, method)
    if not passages:
        why = "it is empty" if not len(store) else "no passage has a word of the question"
        raise ValueError(f"the store has no passage for this question: {why}; index a folder, or ask otherwise")
    return passages


def generated(
    question: str, passages: Sequence[Passage], model: nn.Module, tokenizer: PreTrainedTokenizerFast,
    budget: int = 1024, sampling: Sampling | None = None, system: str = SYSTEM, begin: str = BEGIN,
) -> Answer:  # fmt: skip
    """An answer in a model's words from passages that are given. See `answer`."""
    (first,) = encode_documents(tokenizer, [begin]) if begin else ([],)
    prompt = make_prompt(question, passages, tokenizer, budget - len(first), system)
    sampling = sampling or Sampling(max_new_tokens=120, temperature=0)
    ends = (*stop_ids(model), int(tokenizer.eos_token_id))
    asked = Sampling(**{**vars(sampling), "stop_ids": tuple(dict.fromkeys((*sampling.stop_ids, *ends)))})
    write: Any = generate if isinstance(model, GPT) else generate_by_transformers
    (new,) = write(model, [[*prompt.ids, *first]], asked, tokenizer.pad_token_id or 0)
    text = begin + str(tokenizer.decode(new, skip_special_tokens=True))
    for end in (NEXT, f"\n</{prompt.mark}"):
        text = text.split(end)[0]
    return _checked(text.strip(), "generated", question, prompt.passages)


def extracted(question: str, passages: Sequence[Passage]) -> Answer:
    """The sentence of the passages that has most of the question's words, cited; of equal ones the first.

    It is asked for by name, and never takes the place of a model's answer by itself.

    Raises:
        ValueError: without passages.
    """
    if not passages:
        raise ValueError("there are no passages to take a sentence from; search first")
    wanted = {word for word in words_of(question) if len(word) >= LEAST_LETTERS} or set(words_of(question))
    best, most = (1, ""), -1.0
    for number, passage in enumerate(passages, start=1):
        for sentence in _sentences(passage.chunk.text):
            has = set(words_of(sentence))
            score = len(wanted & has) - len(has) / 1000  # of equal ones the shorter
            if score > most:
                best, most = (number, sentence), score
    number, sentence = best
    return _checked(f"{sentence} [{number}]", "extracted", question, tuple(passages))


def _sentences(text: str) -> list[str]:
    from llm_rag.answers.citations import CITATION, SENTENCE_END

    parts = [" ".join(CITATION.sub(" ", part).split()) for part in SENTENCE_END.split(text)]
    return [part for part in parts if words_of(part)]


def _checked(text: str, kind: Kind, question: str, passages: tuple[Passage, ...]) -> Answer:
    text, removed = without_links(text, question)
    texts = [passage.chunk.text for passage in passages]
    orders = tuple((place + 1, sentence) for place, sentence in like_orders(texts))
    return Answer(text, kind, passages, tuple(check_citations(text, texts)), is_supported(text, texts), removed, orders)
