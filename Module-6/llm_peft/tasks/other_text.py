"""Text that a fine-tuning is not about, to see what a model forgets: bits per byte before and after.

Both texts come with Python: its own source, and the pages of its `help()`, which are English.
"""

from __future__ import annotations

import ast
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from llm_core.losses import causal_loss
from llm_data.measures import bits_per_byte
from torch import Tensor, nn

ROWS, TIME = 6, 256


@dataclass(frozen=True)
class OtherText:
    """Rows of a text.

    Attributes:
        name: "English" or "Python".
        ids: tokens.
        bytes_per_token: of this text, with this tokenizer.
    """

    name: str
    ids: Int[Tensor, "rows time"]
    bytes_per_token: float

    @torch.no_grad()
    def bits(self, model: nn.Module) -> float:
        """Bits per byte, in whatever mode the model is."""
        total, targets = causal_loss(model(self.ids).logits, self.ids)
        return bits_per_byte(total.item() / int(targets), 1, self.bytes_per_token)


def other_texts(tokenizer: Any, rows: int = ROWS, time: int = TIME) -> list[OtherText]:
    """The two texts, in rows that are spread over them."""
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for name, place in (("English", "pydoc_data/topics.py"), ("Python", "argparse.py")):
        text = (library / place).read_text("utf-8")
        if name == "English":  # one dictionary of pages, as Python writes it; read, not run
            (pages,) = (node.value for node in ast.parse(text).body if isinstance(node, ast.Assign))
            text = "\n".join(page for _, page in sorted(ast.literal_eval(pages).items()))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        starts = [(len(ids) - time) * row // max(1, rows - 1) for row in range(rows)]
        chosen = torch.tensor([ids[start : start + time] for start in starts])
        size = sum(len(tokenizer.decode(row).encode()) for row in chosen.tolist())
        found.append(OtherText(name, chosen, size / chosen.numel()))
    return found
