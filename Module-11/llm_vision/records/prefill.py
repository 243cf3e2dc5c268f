"""What a picture's tokens cost before the first word: the language model's prefill on one GPU, by their number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_precision.benchmark import why
from llm_precision.meters import seconds_of

from course.record import Setting
from llm_vision.costs import image_kv_bytes, prefill_flops
from llm_vision.language import features

TEXT = 64  # tokens of a question
# Sides of pictures in patches of 14 pixels: 224, 336, 448 and 672 pixels.
GRIDS = (16, 24, 32, 48)


@torch.inference_mode()
def image_tokens(setting: Setting) -> Iterator[dict[str, Any]]:
    """A language model of Llama-3.2-3B's shape in bf16, one request: a question alone, then a picture before it."""
    config = setting.pick(
        full=GPTConfig(128_256, 3_072, 8_192, num_hidden_layers=28, num_attention_heads=24, num_key_value_heads=8,
                       max_position_embeddings=4_096),
        toy=GPTConfig(64, 32, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=4_096),
    )  # fmt: skip
    dtype = torch.bfloat16 if setting.device == "cuda" else torch.float32
    try:
        with torch.device(setting.device):
            model = GPT(config).to(dtype).eval()
    except (torch.OutOfMemoryError, RuntimeError) as error:
        yield {"row": "model", "missing": why(error)}
        return
    alone = 0.0
    for grid in (0, *setting.pick(full=GRIDS, toy=GRIDS[:2])):
        tokens = grid * grid
        row: dict[str, Any] = {"row": f"{tokens} image tokens", "image_tokens": tokens, "text_tokens": TEXT,
                               "flops": prefill_flops(config, tokens + TEXT),
                               "kv_bytes": image_kv_bytes(config, tokens)}  # fmt: skip
        try:
            embeds = torch.randn(1, tokens + TEXT, config.hidden_size, device=setting.device, dtype=dtype)
            features(model, embeds)
            features(model, embeds)
            rounds = [seconds_of(lambda: features(model, embeds), setting.device) for _ in range(7)]  # noqa: B023
            seconds = sorted(rounds)[3]
            alone = alone or seconds
            row |= {"seconds": seconds, "teraflops_per_second": row["flops"] / seconds / 1e12}
            if tokens:
                row["seconds_per_image_token"] = (seconds - alone) / tokens
        except (torch.OutOfMemoryError, RuntimeError) as error:
            row["missing"] = why(error)
        yield row
