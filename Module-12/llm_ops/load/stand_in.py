"""A model of any size with random weights, to time a server by: its words have no meaning, its seconds have."""

from __future__ import annotations

from pathlib import Path

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


def stand_in(folder: Path, hidden_size: int = 256, layers: int = 4, positions: int = 1024, seed: int = 0) -> Path:
    """Write a folder that `llm-serve` takes: a Llama with random weights, a small tokenizer, a chat template.

    The same arguments give the same weights, and so the same words. There is no token that ends an answer: each is as
    long as was asked for.

    Args:
        folder: that is made.
        hidden_size: C, a multiple of 64.
        layers: of the model.
        positions: the longest text.
        seed: of the weights.
    """
    import torch
    from llm_core.config import GPTConfig
    from llm_core.model import GPT
    from llm_core.store.registry import save_model
    from llm_data.tokenizers.fast import train_fast_tokenizer, vocab_size
    from llm_serve.bench import WORDS

    text = " ".join(WORDS) + " 0 1 2 3 4 5 6 7 8 9 user: assistant:"
    tokenizer = train_fast_tokenizer([f"{text} {text}"] * 20, 320)
    tokenizer.chat_template, tokenizer.eos_token = TEMPLATE, None  # no answer ends before its length
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GPTConfig(
            vocab_size(tokenizer), hidden_size, num_hidden_layers=layers, num_attention_heads=max(1, hidden_size // 64),
            max_position_embeddings=positions, initializer_range=0.3,
        )  # fmt: skip
        model = GPT(config).eval()
    save_model(model, tokenizer, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder
