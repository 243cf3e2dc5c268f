"""Small models with channels far larger than others, and rows to calibrate with: what tests of quantisation share."""

from __future__ import annotations

import torch
from llm_core import GPT, GPTConfig
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2}  # fmt: skip
IDS = torch.randint(0, 96, (10, 48), generator=torch.Generator().manual_seed(1))


def uneven(model):
    """Give a model's norms, values and products of the MLP channels of very different sizes."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "norm" in name:
                values.copy_(torch.randn(values.shape, generator=generator).exp())
            elif name.endswith(("v_proj.weight", "up_proj.weight")):
                values.mul_(torch.randn(len(values), 1, generator=generator).exp())
            elif name.endswith("bias"):
                values.copy_(torch.randn(values.shape, generator=generator) * 0.1)
            elif values.ndim == 2:
                values.mul_(4)
    return model.eval().requires_grad_(False)


def gpt(seed: int = 0, **sizes) -> GPT:
    torch.manual_seed(seed)
    return uneven(GPT(GPTConfig(**{**SIZES, **sizes})))


def llama(seed: int = 0, **sizes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return uneven(LlamaForCausalLM(LlamaConfig(**{**SIZES, "tie_word_embeddings": True, **sizes})))


def qwen(seed: int = 0, **sizes) -> Qwen2ForCausalLM:
    """With biases of queries, keys and values."""
    torch.manual_seed(seed)
    return uneven(Qwen2ForCausalLM(Qwen2Config(**{**SIZES, "tie_word_embeddings": True, **sizes})))
