"""nanoGPT's model and optimiser, from a checkout, in its own loop; the two sides of the text, and the loss on one."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from adjustable_gpt import CONTEXT, Recipe
from torch import Tensor, nn

STEPS = 2000


class NanoGPT:
    """The checkout's model and optimiser, in its own loop."""

    def __init__(self, checkout: Path, text: Tensor, vocab_size: int, seed: int) -> None:
        spec = importlib.util.spec_from_file_location("nanogpt_model", checkout / "model.py")
        if spec is None or spec.loader is None or not (checkout / "model.py").is_file():
            raise SystemExit(f"{checkout} has no model.py; give the path of a nanoGPT checkout")
        module = importlib.util.module_from_spec(spec)
        sys.modules["nanogpt_model"] = module  # its dataclass looks itself up
        spec.loader.exec_module(module)
        torch.manual_seed(seed)
        with contextlib.redirect_stdout(io.StringIO()):
            self.model = module.GPT(
                module.GPTConfig(
                    block_size=CONTEXT, vocab_size=vocab_size, n_layer=4, n_head=4, n_embd=128, dropout=0.0, bias=False
                )
            )
            self.optimizer = self.model.configure_optimizers(1e-1, 1e-3, (0.9, 0.99), "cpu")
        self.text, self.draw = text, torch.Generator().manual_seed(seed)
        self.steps, self.done, self.seconds = STEPS, 0, 0.0
        self.recipe = Recipe(rotary=False, rms=False, mlp="gelu")

    def step(self) -> None:
        start = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        places = torch.randint(len(self.text) - CONTEXT, (12,), generator=self.draw)
        ids = torch.stack([self.text[place : place + CONTEXT] for place in places])
        targets = torch.stack([self.text[place + 1 : place + 1 + CONTEXT] for place in places])
        _, loss = self.model(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        self.seconds += time.perf_counter() - start

    def _rate(self) -> float:
        warm = min(100, self.steps // 20)
        if self.done < warm:
            return 1e-3 * (self.done + 1) / (warm + 1)
        at = (self.done - warm) / (self.steps - warm)
        return 1e-4 + 0.5 * (1 + math.cos(math.pi * at)) * 9e-4

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.model(ids, targets)[1]
        return loss


def split(text: str) -> tuple[Tensor, Tensor, int]:
    """Training and validation ids, 90 to 10 by position, and the number of symbols."""
    symbols = sorted(set(text))
    number = {symbol: place for place, symbol in enumerate(symbols)}
    ids = torch.tensor([number[symbol] for symbol in text])
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:], len(symbols)


@torch.no_grad()
def evaluate(contender: Any, text: Tensor) -> float:
    """Mean loss over the whole text, in windows of 64."""
    windows = (len(text) - 1) // CONTEXT
    ids = text[: windows * CONTEXT].view(windows, CONTEXT)
    targets = text[1 : windows * CONTEXT + 1].view(windows, CONTEXT)
    contender.model.eval()
    total = 0.0
    for rows, wanted in zip(ids.split(67), targets.split(67), strict=True):
        total += contender.loss(rows.contiguous(), wanted.contiguous()).item() * len(rows)
    contender.model.train()
    return total / windows
