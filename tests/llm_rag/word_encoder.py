"""An encoder without a model, and an indexing run that a test starts as a child: FOLDER STORE SECONDS."""

from __future__ import annotations

import hashlib
import sys
import time
from functools import cache

import torch
from llm_rag.search.bm25 import words_of

DIM = 16


@cache
def direction(word, dim):
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed))


class WordEncoder:
    """Each word has a direction of its own, drawn by its hash; a text is their sum."""

    def __init__(self, seconds: float = 0.0, name: str = "words-16", dim: int = DIM) -> None:
        self.name, self.dim, self.seconds, self.texts = name, dim, seconds, 0

    def encode(self, texts):
        time.sleep(self.seconds)
        self.texts += len(texts)
        rows = torch.zeros(len(texts), self.dim)
        for row, text in zip(rows, texts, strict=True):
            for word in [*words_of(text), ""]:
                row += direction(word, self.dim)
        return torch.nn.functional.normalize(rows) if len(texts) else rows


if __name__ == "__main__":
    from llm_rag.store.indexing import index
    from llm_rag.store.store import Store

    with Store(sys.argv[2], WordEncoder(float(sys.argv[3])), write=True) as store:
        print("open", flush=True)
        index(sys.argv[1], store, said=lambda path: print(path, flush=True))
