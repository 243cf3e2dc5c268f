"""How much an engine may take, and how it shares it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import cast

from llm_serve.quantization.kv_cache import FORMATS, KVFormat

LOGPROBS = ("raw_logprobs", "processed_logprobs")


@dataclass(frozen=True)
class EngineConfig:
    """Limits of an engine; the names are vLLM's where it has one.

    Args:
        block_size: positions in a block of the cache.
        num_blocks: blocks, which is all the memory that keys and values ever take.
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens in one step; a longer prompt is read in chunks, between which others write.
        enable_prefix_caching: whether a prompt that begins as an earlier one takes its blocks.
        max_waiting: requests that may wait; a further one is refused with `QueueFull`.
        patience: steps after which a waiting request counts as one of the next higher priority: nothing starves.
        kv_cache_dtype: "auto" keeps keys and values in the model's dtype; "int8", "int4" or "fp8" in fewer bits.
        logprobs_mode: "raw_logprobs" tells the model's log-probabilities; "processed_logprobs" those of the
            distribution that was drawn from, after temperature and cuts.
        log_steps: how many of the last steps the engine's log keeps.

    Raises:
        ValueError: for numbers that cannot be.
    """

    block_size: int = 16
    num_blocks: int = 256
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 256
    enable_prefix_caching: bool = True
    max_waiting: int = 1024
    patience: int = 256
    kv_cache_dtype: str = "auto"
    logprobs_mode: str = "raw_logprobs"
    log_steps: int = 10_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name}={value!r} must be a whole number and at least 1")
        if self.kv_cache_dtype not in ("auto", *FORMATS):
            raise ValueError(f"kv_cache_dtype={self.kv_cache_dtype!r} is none of auto, {', '.join(FORMATS)}")
        if self.logprobs_mode not in LOGPROBS:
            raise ValueError(f"logprobs_mode={self.logprobs_mode!r} is none of {', '.join(LOGPROBS)}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be at least max_num_seqs="
                f"{self.max_num_seqs}: every running sequence writes a token a step"
            )

    @property
    def kv_format(self) -> KVFormat | None:
        """What the cache keeps; None for the model's dtype."""
        return None if self.kv_cache_dtype == "auto" else cast(KVFormat, self.kv_cache_dtype)
