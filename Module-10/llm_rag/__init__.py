"""Module 10's helper package: find the passage, and answer from it.

`from llm_rag import Store, index, load_encoder, answer`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from llm_rag.answers.answer import Answer, answer, extracted, generated
    from llm_rag.answers.citations import check_citations
    from llm_rag.answers.injection import like_orders, without_links
    from llm_rag.answers.prompt import make_prompt
    from llm_rag.encoders.bi_encoder import BiEncoder, BiEncoderConfig, train_bi_encoder
    from llm_rag.encoders.contrastive import info_nce
    from llm_rag.encoders.encoder import Encoder, load_encoder, mean_pool
    from llm_rag.encoders.minilm import MiniLM
    from llm_rag.evaluate import gain, rank_of, retrieval
    from llm_rag.folder.chunks import Chunk, Chunking, chunks_of
    from llm_rag.folder.documents import Document, LeftOut, read_folder
    from llm_rag.kept import kept_vectors, library_encoder
    from llm_rag.pairs import Pair, library_pairs, split
    from llm_rag.search.bm25 import BM25, words_of
    from llm_rag.search.exact import ExactIndex, exact_bytes
    from llm_rag.search.fusion import reciprocal_rank_fusion
    from llm_rag.search.inverted import InvertedFile, inverted_bytes, kmeans
    from llm_rag.store.indexing import Report, index
    from llm_rag.store.schema import StoreError
    from llm_rag.store.store import Passage, Store

__all__ = [
    "BM25", "Answer", "BiEncoder", "BiEncoderConfig", "Chunk", "Chunking", "Document", "Encoder", "ExactIndex",
    "InvertedFile", "LeftOut", "MiniLM", "Pair", "Passage", "Report", "Store", "StoreError", "answer",
    "check_citations", "chunks_of", "exact_bytes", "extracted", "gain", "generated", "index", "info_nce",
    "inverted_bytes", "kept_vectors", "kmeans", "library_encoder", "library_pairs", "like_orders", "load_encoder",
    "make_prompt", "mean_pool", "rank_of", "read_folder", "reciprocal_rank_fusion", "retrieval", "split",
    "train_bi_encoder", "without_links", "words_of",
]  # fmt: skip

export(__name__, {
    "BM25": "search.bm25", "Answer": "answers.answer", "BiEncoder": "encoders.bi_encoder",
    "BiEncoderConfig": "encoders.bi_encoder", "Chunk": "folder.chunks", "Chunking": "folder.chunks",
    "Document": "folder.documents", "Encoder": "encoders.encoder", "ExactIndex": "search.exact",
    "InvertedFile": "search.inverted", "LeftOut": "folder.documents", "MiniLM": "encoders.minilm", "Pair": "pairs",
    "Passage": "store.store", "Report": "store.indexing", "Store": "store.store", "StoreError": "store.schema",
    "answer": "answers.answer", "check_citations": "answers.citations", "chunks_of": "folder.chunks",
    "exact_bytes": "search.exact", "extracted": "answers.answer", "gain": "evaluate", "generated": "answers.answer",
    "index": "store.indexing", "info_nce": "encoders.contrastive", "inverted_bytes": "search.inverted",
    "kept_vectors": "kept", "kmeans": "search.inverted", "library_encoder": "kept",
    "library_pairs": "pairs", "like_orders": "answers.injection",
    "load_encoder": "encoders.encoder", "make_prompt": "answers.prompt", "mean_pool": "encoders.encoder",
    "rank_of": "evaluate", "read_folder": "folder.documents", "reciprocal_rank_fusion": "search.fusion",
    "retrieval": "evaluate", "split": "pairs", "train_bi_encoder": "encoders.bi_encoder",
    "without_links": "answers.injection", "words_of": "search.bm25",
})  # fmt: skip
