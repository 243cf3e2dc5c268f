"""Many prompts answered at once, greedily, through Module 7's engine: what a measurement over questions needs."""

from __future__ import annotations

from collections.abc import Sequence

from llm_core.generate import Sampling
from llm_core.model import GPT
from llm_serve.engine.config import EngineConfig
from llm_serve.engine.engine import Engine
from llm_serve.engine.request import Request
from transformers import PreTrainedTokenizerFast


def many(
    model: GPT, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Sequence[int]], max_new_tokens: int = 5
) -> list[str]:
    """The answer to each prompt, the same that it would get alone.

    Args:
        model, tokenizer: of `load_model`.
        prompts: token ids of each, with what the answer is to begin with.
        max_new_tokens: of an answer.
    """
    asked = Sampling(max_new_tokens=max_new_tokens, temperature=0)
    config = EngineConfig(num_blocks=1024, max_num_batched_tokens=512)
    engine = Engine(model, tokenizer, config)
    requests = [Request(tuple(prompt), asked) for prompt in prompts]
    # The first goes alone: the others then find the beginning that all share, the rules, in the engine's cache.
    return [each.text for part in (requests[:1], requests[1:]) for (each,) in engine.run(part)]
