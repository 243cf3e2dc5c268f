"""`rag eval`: recall and reciprocal rank of each method, on the library's docstrings or on questions of one's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm_peft.chat.records import lines_of, text_of

from llm_rag.encoders.encoder import Encoder, load_encoder
from llm_rag.evaluate import gain, rank_of, retrieval
from llm_rag.pairs import library_pairs
from llm_rag.search.bm25 import BM25, words_of
from llm_rag.search.exact import ExactIndex
from llm_rag.search.fusion import reciprocal_rank_fusion
from llm_rag.store.schema import refuse_other_files
from llm_rag.store.store import DEPTH, METHODS, Store

Ranks = dict[str, list[int]]


def library_ranks(
    number: int | None = None, hidden: bool = False, encoder: Encoder | None = None, depth: int = DEPTH
) -> Ranks:
    """The rank of each docstring's own function among all, by each method; 0 below `depth`.

    Args:
        number: docstrings that are asked, the first of all; they are looked for among all functions of these pairs.
        hidden: without the functions' names.
        encoder: for "vectors" and "hybrid"; by words alone if None.
        depth: of the rankings.

    Raises:
        ValueError: for fewer than two.
    """
    pairs = library_pairs()[:number]
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} pairs give no interval; take at least 2")
    codes, asked = [pair.hidden if hidden else pair.code for pair in pairs], [pair.docstring for pair in pairs]
    bm25 = BM25([words_of(code) for code in codes])
    rankings = {"words": [[hit.id for hit in bm25.search(words_of(text), depth)] for text in asked]}
    if encoder is not None:
        index = ExactIndex(encoder.dim, "cosine")
        index.add(encoder.encode(codes))
        rankings["vectors"] = index.search(encoder.encode(asked), min(depth, len(pairs)))[1].tolist()
        both = zip(rankings["words"], rankings["vectors"], strict=True)
        rankings["hybrid"] = [[item for item, _ in reciprocal_rank_fusion(pair)] for pair in both]
    return {name: [rank_of(row, right) for right, row in enumerate(rows)] for name, rows in rankings.items()}


def own_ranks(file: Path | str, store: Store, methods: Sequence[str] = METHODS, depth: int = DEPTH) -> Ranks:
    """The rank of the first passage that is right, for each question of a `.jsonl` file.

    A line is {"question": "...", "path": "..."}, for which a passage of that document is right, or {"question": "...",
    "answer": "..."}, for which one is right that has these words; with both it must be both.

    Raises:
        ValueError: for a line that is none, and a document that is not in the store.
    """
    ranks: Ranks = {method: [] for method in methods}
    there = store.documents()
    for place, record in lines_of(file, "questions"):
        if not isinstance(record, dict) or not {"path", "answer"} & set(record):
            raise ValueError(f'{place}: expected an object with "question" and "path" or "answer"')
        question = text_of(record, "question", place)
        path, words = (text_of(record, key, place) if key in record else None for key in ("path", "answer"))
        if path is not None and path not in there:
            raise ValueError(f"{place}: the store has no document {path!r}; index its folder, or mend the path")
        for method in methods:
            found = [each.chunk for each in store.search(question, depth, method)]
            right = [path in (None, each.document) and (words or "").lower() in each.text.lower() for each in found]
            ranks[method].append(rank_of(right, True))
    return ranks


def run(
    pairs: str | None, store: str | None, limit: int | None, hidden: bool, k: int, encoder: str, as_json: bool
) -> str:  # fmt: skip
    """Measure, and say it with intervals.

    Raises:
        ValueError: for questions without a store, or the other way round.
    """
    if (pairs is None) != (store is None):
        raise ValueError("--pairs and --store belong together: questions, and where they are asked")
    if k < 1 or k > DEPTH:
        raise ValueError(f"--k {k} must be from 1 to {DEPTH}")
    if pairs is not None and store is not None:
        path = Path(store).expanduser()
        refuse_other_files(path, create=False)
        with Store(path, load_encoder(encoder)) as opened:
            ranks = own_ranks(pairs, opened)
    else:
        ranks = library_ranks(limit, hidden, load_encoder(encoder))
    if len(ranks["words"]) < 2:
        raise ValueError("one question gives no interval; ask at least 2")
    found = {method: retrieval(each, k) for method, each in ranks.items()}
    against = {
        name: gain(ranks[name], ranks["hybrid"], k) for name in ("words", "vectors")
    }  # fmt: skip
    if as_json:
        facts: Callable[[Any], Any] = asdict
        return json.dumps({"methods": {name: facts(each) for name, each in found.items()},
                           "hybrid_less": {name: facts(each) for name, each in against.items()}})  # fmt: skip
    lines = [f"{name:8} {each}" for name, each in found.items()]
    return "\n".join([*lines, *(f"hybrid less {name}: {each}" for name, each in against.items())])
