"""Which model an adapter belongs to: a fingerprint of the frozen weights, the same in memory and in a folder's files.

Of each tensor it takes the shape and 64 values, evenly spaced, rounded to bfloat16: a model that was loaded in half the
width has the fingerprint that it had on disk. Any training of all weights changes some of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

VALUES = 64


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """16 hex digits for named tensors, in any order; tied ones may be there once or twice."""
    seen = {}
    for name, values in tensors:
        if values.numel() and values.is_floating_point():
            flat = values.detach().reshape(-1)
            chosen = torch.arange(min(VALUES, len(flat)), device=flat.device) * len(flat) // min(VALUES, len(flat))
            rounded = flat[chosen].to(torch.bfloat16).cpu().view(torch.int16)
            seen[name] = hashlib.sha256(repr((tuple(values.shape), rounded.tolist())).encode()).hexdigest()
    return hashlib.sha256(repr(sorted(set(seen.values()))).encode()).hexdigest()[:16]


def fingerprint_of_model(model: nn.Module) -> str:
    """Of a model without adapters, in whatever width it is."""
    return fingerprint(model.state_dict().items())


def fingerprint_of_folder(folder: Path | str) -> str:
    """Of the weights in a folder of transformers, which are mapped and not loaded.

    Raises:
        FileNotFoundError: when it has no safetensors.
    """
    files = sorted(Path(folder).glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no model*.safetensors to tell its weights by")

    def tensors() -> Iterable[tuple[str, Tensor]]:
        for path in files:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    yield name, file.get_tensor(name)

    return fingerprint(tensors())
