"""What the tests of the package share lies beside them; and a folder of small documents."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # a child process imports the encoder by name

TEXTS = {
    "bread.md": "# Bread\n\nBread needs flour, salt and 12 grams of yeast.\n\nBake it for 45 minutes at 230 degrees.\n",
    "tea.txt": "Green tea is brewed at 80 degrees. Black tea needs boiling water and five minutes.\n",
    "code/sort.py": '"""Sorting."""\n\n\ndef bubble(items):\n    return items\n\n\ndef quick(items):\n    return 1\n',
    "deep/er/bees.txt": "A hive has one queen. Bees dance to show where flowers are.\n",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "documents"
    for name, text in TEXTS.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root


@pytest.fixture(scope="session")
def minilm():
    from llm_rag.encoders import minilm as module

    if module.folder() is None:
        pytest.skip(f"not installed: {module.WAYS_OUT}")
    return module.MiniLM()


@pytest.fixture(scope="session")
def smollm2():
    from llm_core.store import smollm2 as module
    from llm_core.store.registry import load_model

    if module.packed_file() is None:
        pytest.skip(f"not installed: {module.WAYS_OUT}")
    return load_model(module.NAME)


@pytest.fixture(scope="session")
def chat_tokenizer():
    """A byte-level BPE with the chat template and the special tokens of smollm2's shape, made in a moment."""
    from llm_data.tokenizers.fast import train_fast_tokenizer

    made = train_fast_tokenizer(list(TEXTS.values()) * 3, 400)
    made.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    made.chat_template = (
        "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
    )
    return made
