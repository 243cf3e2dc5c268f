"""Module 3's helper package: a GPT, its losses and optimiser, its training under Lightning, and its samples.

`from llm_core import GPT, BabyGPT, generate, load_model`; each name is loaded when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from course.lazy import export

if TYPE_CHECKING:
    from llm_core.babygpt import BabyGPT
    from llm_core.config import GPTConfig
    from llm_core.generate import Sampling, generate, sample_texts
    from llm_core.model import GPT, KeyValueCache
    from llm_core.store.registry import load_model, save_model

__all__ = [
    "GPT", "BabyGPT", "GPTConfig", "KeyValueCache", "Sampling", "generate", "load_model", "sample_texts", "save_model",
]  # fmt: skip

export(__name__, {
    "BabyGPT": "babygpt", "GPT": "model", "GPTConfig": "config", "KeyValueCache": "model", "Sampling": "generate",
    "generate": "generate", "load_model": "store.registry", "sample_texts": "generate", "save_model": "store.registry",
})  # fmt: skip
