"""`rag ask`: an answer with its citations, or only the passages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_data.text.search import shown

from llm_rag.answers.answer import Answer, extracted, found_for, generated
from llm_rag.encoders.encoder import load_encoder
from llm_rag.store.schema import refuse_other_files
from llm_rag.store.store import METHODS, Passage, Store

SHOWN = 300  # characters of a passage


def run(
    question: str, store: str, k: int, method: str, model: str, encoder: str, budget: int, max_new_tokens: int,
    kind: str, show: bool, as_json: bool,
) -> str:  # fmt: skip
    """Answer, and say what the answer rests on.

    Raises:
        ValueError: for mistakes, before anything is loaded where it can be told.
    """
    if method not in METHODS:
        raise ValueError(f"--method {method!r} is none of {', '.join(METHODS)}")
    if not question.strip():
        raise ValueError("the question is empty; ask something")
    path = Path(store).expanduser()
    refuse_other_files(path, create=False)
    with Store(path, load_encoder(encoder) if method != "words" else None) as opened:
        passages = found_for(question, opened, k, method)
    if kind == "passages":
        return json.dumps([_facts(each) for each in passages], ensure_ascii=False) if as_json else _listed(passages)
    if kind == "extracted":
        found = extracted(question, passages)
    else:
        from llm_core.cli import open_model
        from llm_core.generate import Sampling

        language_model, tokenizer = open_model(model)
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=0)
        found = generated(question, passages, language_model, tokenizer, budget, sampling)
    return json.dumps(_answer_facts(found), ensure_ascii=False) if as_json else _told(found, show)


def _told(found: Answer, show: bool) -> str:
    lines = [printable(found.text), ""]
    for each in found.citations:
        state = "supported" if each.supported else "NOT supported" if each.exists else "NO SUCH PASSAGE"
        lines.append(f"[{each.number}] {state}: {printable(each.sentence)}")
    if not found.supported:
        lines.append("UNSUPPORTED: not every sentence rests on a passage that it cites; read the passages themselves")
    lines += [f"removed: {printable(each)}" for each in found.removed]
    lines += [f"passage [{number}] sounds like an order: {printable(text)[:SHOWN]}" for number, text in found.orders]
    return "\n".join([*lines, "", f"{found.kind} from:", _listed(found.passages, None if show else SHOWN // 3)])


def _listed(passages: Any, most: int | None = SHOWN) -> str:
    lines = []
    for number, each in enumerate(passages, start=1):
        text = " ".join(printable(each.chunk.text).split()) if most else printable(each.chunk.text)
        lines.append(f"[{number}] {each.chunk.document}:{each.chunk.start}-{each.chunk.stop} ({each.score:.3f}) "
                     f"{text[:most] if most else text}")  # fmt: skip
    return "\n".join(lines)


def printable(text: str) -> str:
    """A text without what would steer the terminal that shows it; line ends stay."""
    return "\n".join(shown(line) for line in text.replace("\t", " ").split("\n"))


def _facts(passage: Passage) -> dict[str, Any]:
    chunk = passage.chunk
    return {
        "path": chunk.document,
        "start": chunk.start,
        "stop": chunk.stop,
        "score": passage.score,
        "text": chunk.text,
    }


def _answer_facts(found: Answer) -> dict[str, Any]:
    return {
        "text": found.text, "kind": found.kind, "supported": found.supported,
        "citations": [vars(each) for each in found.citations], "passages": [_facts(each) for each in found.passages],
        "removed": found.removed, "orders": found.orders,
    }  # fmt: skip
