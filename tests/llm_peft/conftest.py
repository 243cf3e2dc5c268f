"""A small Llama and a tokenizer with a chat template, as a folder; and examples to train on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from llm_data.tokenizers.fast import train_fast_tokenizer
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent))  # ranks import jobs by name, and tests what they share
from small_llama import TEMPLATE, chat_line, llama


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    made = train_fast_tokenizer([f"What is {n} plus one? It is {n + 1}." for n in range(200)], 400)
    made.add_special_tokens({"additional_special_tokens": ["<|start|>"]})
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="session")
def base(tmp_path_factory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base")
    llama(tie_word_embeddings=True, max_position_embeddings=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def examples(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "examples.jsonl"
    path.write_text("".join(chat_line(number) + "\n" for number in range(60)), "utf-8")
    return path
