"""A small Llama with logits far enough apart that rounding decides no token, in transformers' class and in ours."""

from __future__ import annotations

from functools import cache

import torch
from llm_core import GPT
from llm_core.config import GPTConfig
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

VOCAB = 61


@cache
def pair(seed: int = 0) -> tuple[LlamaForCausalLM, GPT]:
    """The same weights twice."""
    sizes = {
        "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 96, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(seed)
    theirs = LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=None, bos_token_id=None, pad_token_id=0)).eval()
    ours = GPT(GPTConfig(**sizes)).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def alone(model: LlamaForCausalLM, prompt: tuple[int, ...], asked, seed: int | None = None) -> list[int]:
    """What transformers' `generate` writes for one prompt by itself."""
    settings = GenerationConfig(
        max_new_tokens=asked.max_new_tokens, do_sample=asked.temperature > 0, temperature=asked.temperature or None,
        top_k=asked.top_k if asked.temperature else None, top_p=float(asked.top_p) if asked.temperature else None,
        repetition_penalty=float(asked.repetition_penalty),
        eos_token_id=list(asked.stop_ids) or None, pad_token_id=0, suppress_tokens=list(asked.suppress_tokens) or None,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(asked.seed if seed is None else seed)
        ids = torch.tensor([prompt])
        row = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[0]
    return row[len(prompt) :].tolist()
