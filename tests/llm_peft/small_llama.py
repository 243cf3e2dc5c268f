"""A small Llama, a chat template, and lines to train on: what tests of this folder share, under a name of its own.

Every folder of tests has a `conftest`, and whoever imports that name gets another one's.
"""

from __future__ import annotations

import json

import torch
from transformers import LlamaConfig, LlamaForCausalLM

TEMPLATE = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] | trim + '<|endoftext|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(seed: int = 0, **sizes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 512, "num_key_value_heads": 2, **sizes}))


def chat_line(number: int) -> str:
    turns = [("user", f"What is {number} plus one?"), ("assistant", f"It is {number + 1}.")]
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})
