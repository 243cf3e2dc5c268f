"""A small Llama and a tokenizer with a chat template, as a folder; and examples to train on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from llm_data.tokenizers.fast import train_fast_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] | trim + '<|endoftext|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    made = train_fast_tokenizer([f"What is {n} plus one? It is {n + 1}." for n in range(200)], 400)
    made.add_special_tokens({"additional_special_tokens": ["<|start|>"]})
    made.chat_template = TEMPLATE
    return made


def llama(seed: int = 0, **sizes) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 512, "num_key_value_heads": 2, **sizes}))


@pytest.fixture(scope="session")
def base(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base")
    llama(tie_word_embeddings=True, max_position_embeddings=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat_line(number: int) -> str:
    turns = [("user", f"What is {number} plus one?"), ("assistant", f"It is {number + 1}.")]
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]})


@pytest.fixture(scope="session")
def examples(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "examples.jsonl"
    path.write_text("".join(chat_line(number) + "\n" for number in range(60)), "utf-8")
    return path
