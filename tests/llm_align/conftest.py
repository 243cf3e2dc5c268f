"""A small model with a chat template as a folder, and files of pairs and prompts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_core.store.registry import save_model
from llm_data.tokenizers.fast import train_fast_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # ranks import jobs by name, and tests what they share

TEMPLATE = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] | trim + '<|endoftext|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    made = train_fast_tokenizer([f"What is {n} plus one? It is {n + 1}." for n in range(200)], 400)
    made.add_special_tokens({"additional_special_tokens": ["<|start|>"]})
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="session")
def base(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = GPTConfig(len(tokenizer), hidden_size=32, num_hidden_layers=2, max_position_embeddings=128,
                       initializer_range=0.1, num_key_value_heads=2)  # fmt: skip
    save_model(GPT(config), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder with sft.jsonl, pairs.jsonl and prompts.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    asked = [[{"role": "user", "content": f"What is {number} plus one?"}] for number in range(24)]
    said = [f"It is {number + 1}." for number in range(24)]
    lines = {
        "prompts": [{"messages": turns} for turns in asked],
        "pairs": [
            {"messages": turns, "chosen": right, "rejected": "It is."} for turns, right in zip(asked, said, strict=True)
        ],
        "sft": [
            {"messages": [*turns, {"role": "assistant", "content": right}]}
            for turns, right in zip(asked, said, strict=True)
        ],
    }
    for name, records in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records), "utf-8")
    return folder
