"""Module 2's helper package: from raw text to batches, with no token lost and none shown twice.

`from llm_data import LLMDataModule, load_corpus`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from llm_data.datamodule import LLMDataModule
    from llm_data.rows.documents import IGNORE_INDEX
    from llm_data.rows.loader import StatefulLoader
    from llm_data.text.corpora import Corpus, load_corpus
    from llm_data.tokenizers.bpe import ByteLevelBPE, train_bpe

__all__ = ["IGNORE_INDEX", "ByteLevelBPE", "Corpus", "LLMDataModule", "StatefulLoader", "load_corpus", "train_bpe"]

export(__name__, {
    "ByteLevelBPE": "tokenizers.bpe", "Corpus": "text.corpora", "IGNORE_INDEX": "rows.documents",
    "LLMDataModule": "datamodule", "StatefulLoader": "rows.loader", "load_corpus": "text.corpora",
    "train_bpe": "tokenizers.bpe",
})  # fmt: skip
