"""From text to token shards, and to questions that no training text answers."""

from __future__ import annotations

import json
from pathlib import Path

from llm_align.evaluate.contamination import duplicates
from llm_align.tasks import functions
from llm_align.tasks.task import Question
from llm_data.datamodule import LLMDataModule
from llm_data.text.corpora import SPLITS, Corpus, load_corpus
from llm_peft.tasks.signatures import Signature, signatures, write_examples

from course import check
from course.files import write_text
from llm_ops.way.settings import CONTEXT, CORPUS, TOKENIZER
from llm_ops.way.stage import Made, Place

MOST, PER_HELD_OUT = 3_000, 32  # functions looked at: a twentieth of them is on the test side
EXAMPLES, VALIDATED, PER_ROUND = 200, 16, 8


def language_data(place: Place) -> LLMDataModule:
    """The text as batches; `prepare_data` makes what is missing."""
    cache = place.folder("data") / "cache"
    return LLMDataModule(CORPUS, TOKENIZER, CONTEXT, batch_size=8, cache=cache, progress=False)


def run(place: Place) -> Made:
    """The stage."""
    folder, corpus = place.folder("data"), load_corpus(CORPUS)
    data = language_data(place)
    data.prepare_data()
    data.setup()
    texts = {side: list(corpus.documents(side)) for side in SPLITS}
    for side in SPLITS:
        tokens = data.tokens(side)
        found = data.tokenizer.batch_decode([tokens[number][:-1].tolist() for number in range(len(tokens))])
        check.holds(f"{side}: the shards decode to the text", found == texts[side], f"{len(found):,} documents")
    every = [text for side in SPLITS for text in texts[side]]
    check.equal("documents on two sides", len(every) - len(set(every)), 0)
    check.equal("tokens of the vocabulary", data.vocab_size, int(TOKENIZER.split("-")[1]))
    taught, held_out = _functions(place, corpus, texts["train"])
    _write(folder / "prompts.jsonl", taught)
    _write(folder / "held_out.jsonl", held_out)
    files = ["cache/tokenizers", "cache/shards", "prompts.jsonl", "held_out.jsonl"]
    if place.settings.smollm2:
        files += _conversations(place, folder)
    facts = {
        "documents": {side: len(texts[side]) for side in SPLITS},
        "tokens": {side: data.tokens(side).manifest.tokens for side in SPLITS},
        "text_bytes": data.tokens("train").manifest.text_bytes, "bytes_per_token": data.bytes_per_token("train"),
        "questions": len(held_out), "prompts": len(taught), "fingerprint": corpus.fingerprint,
    }  # fmt: skip
    return Made(tuple(files), facts)


def _functions(place: Place, corpus: Corpus, training: list[str]) -> tuple[list[Question], list[Question]]:
    """Beginnings of functions: those to learn from are of the training side, those to be asked of the test side.

    What is held out is the function. Its first words, `def close(self`, may begin others too.
    """
    settings = place.settings
    found = functions.questions(min(MOST, PER_HELD_OUT * settings.questions), settings.seed)
    sides: dict[str, list[Question]] = {side: [] for side in SPLITS}
    for each in found:
        sides[corpus.side(each.prompt + each.answer)].append(each)
    asked = sides["test"][: settings.questions]
    wanted = settings.align_steps * PER_ROUND + PER_ROUND  # and a round to validate on
    check.equal("held-out questions", len(asked), settings.questions)
    whole = [each.prompt + each.answer for each in asked]
    check.equal("held-out functions that were trained on", len(duplicates(whole, training)), 0)
    return sides["train"][:wanted], asked


def _write(path: Path, questions: list[Question]) -> None:
    lines = (json.dumps({"prompt": each.prompt, "answer": each.answer}) + "\n" for each in questions)
    write_text(path, "".join(lines))


def read_prompts(place: Place) -> list[str]:
    """The held-out beginnings."""
    lines = (place.folder("data") / "held_out.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def asked_signatures(place: Place) -> list[Signature]:
    """The held-out questions for smollm2."""
    return signatures(place.settings.asked, place.settings.seed)


def _conversations(place: Place, folder: Path) -> list[str]:
    settings = place.settings
    chosen = signatures(settings.asked + VALIDATED + EXAMPLES, settings.seed)
    asked, rest = chosen[: settings.asked], chosen[settings.asked :]
    check.equal("questions that are taught too", len({each.line for each in asked} & {each.line for each in rest}), 0)
    check.holds("the same questions are found again", asked == asked_signatures(place))
    write_examples(folder / "sft_val.jsonl", rest[:VALIDATED])
    write_examples(folder / "sft.jsonl", rest[VALIDATED:])
    return ["sft.jsonl", "sft_val.jsonl"]
