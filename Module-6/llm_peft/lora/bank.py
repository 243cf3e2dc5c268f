"""Several adapters on one model: each row of a batch chooses its own, and all share the frozen weights.

A row's update is B_k A_k x with the k that it chose. The As of all adapters stand in one tensor and so do the Bs: a
layer takes those of its rows and multiplies them in one batched product. Chen et al. 2023, Punica (arXiv:2310.18547).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_peft.lora.config import LoRAConfig
from llm_peft.lora.inject import adapters
from llm_peft.lora.layer import sizes


class Choice:
    """Which adapter each row of the next batches uses; one object for all layers of a model."""

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        self.spans: list[tuple[int, slice]] | None = None


class BankedLinear(nn.Module):
    """A frozen linear layer with the updates of N adapters, number 0 of which is none.

    Args:
        base_layer: the frozen layer.
        A: of all adapters, narrower ones filled up with zeros; the scale is in B.
        B: likewise.
        choice: of the rows.
    """

    def __init__(
        self, base_layer: nn.Module, A: Float[Tensor, "adapters r inside"], B: Float[Tensor, "adapters outside r"],
        choice: Choice,
    ) -> None:  # fmt: skip
        super().__init__()
        self.base_layer, self.choice = base_layer, choice
        self.register_buffer("A", A)
        self.register_buffer("B", B)
        self.A: Tensor
        self.B: Tensor

    def forward(self, x: Float[Tensor, "batch time inside"]) -> Float[Tensor, "batch time outside"]:
        rows = self.choice.rows
        if rows is None:
            return self.base_layer(x)
        if len(rows) != len(x):
            raise ValueError(f"{len(rows)} rows have chosen an adapter, and the batch has {len(x)}; call choose anew")
        compressed = x @ self.A[rows].transpose(1, 2)  # (batch, time, r)
        return self.base_layer(x) + compressed @ self.B[rows].transpose(1, 2)


class FlatBankedLinear(BankedLinear):
    """The same for one flat row in which the tokens of many requests lie side by side: the batch of an engine. A span
    of tokens with one adapter takes its matrices once, in place of a copy for each token."""

    def forward(self, x: Float[Tensor, "batch time inside"]) -> Float[Tensor, "batch time outside"]:
        spans = self.choice.spans
        if spans is None:
            return super().forward(x)
        if len(x) != 1 or x.shape[1] != spans[-1][1].stop:
            wrong = f"{spans[-1][1].stop} tokens have chosen an adapter, and the batch is {tuple(x.shape[:2])}"
            raise ValueError(f"{wrong}; call choose_spans anew")
        out = self.base_layer(x)
        for number, part in spans:
            if number:
                out[:, part] += (x[:, part] @ self.A[number].T) @ self.B[number].T
        return out


class AdapterBank:
    """A model with several adapters of one kind, chosen row by row: `bank.choose(["german", None, "code"])`.

    Args:
        model: without adapters; its layers are replaced in place.
        banks: by the adapter's name, its configuration and its state (`adapter_state`, or `read_adapter`'s).

    Raises:
        ValueError: for a name that stands for no adapter, for DoRA, and for states of another model.
    """

    def __init__(self, model: nn.Module, banks: Mapping[str, tuple[LoRAConfig, Mapping[str, Tensor]]]) -> None:
        if next(adapters(model), None) is not None:
            raise ValueError("the model has an adapter of its own; merge it, or load the model anew")
        for name, (config, _) in banks.items():
            if config.use_dora:
                raise ValueError(f"adapter {name!r} is of DoRA, which changes a layer's own rows; a bank takes LoRA")
        self.names: list[str | None] = [None, *banks]
        self.choice = Choice()
        layers = {key.rpartition(".")[0] for _, state in banks.values() for key in state}
        widest = max(config.r for config, _ in banks.values())
        there = dict(model.named_modules())
        for path in sorted(layers):
            if path not in there:
                raise ValueError(f"the model has no layer {path}; the adapter is of another model")
            model.set_submodule(path, self._layer(there[path], path, widest, banks))

    def _layer(
        self, base: nn.Module, path: str, widest: int, banks: Mapping[str, tuple[LoRAConfig, Mapping[str, Tensor]]]
    ) -> FlatBankedLinear:
        inside, outside = sizes(base)
        weight: Any = base.weight
        A = torch.zeros(len(banks) + 1, widest, inside, device=weight.device)
        B = torch.zeros(len(banks) + 1, outside, widest, device=weight.device)
        for number, (name, (config, state)) in enumerate(banks.items(), start=1):
            if f"{path}.lora_A" not in state:
                continue
            wanted = {"lora_A": (config.r, inside), "lora_B": (outside, config.r)}
            for part, shape in wanted.items():
                if tuple(state[f"{path}.{part}"].shape) != shape:
                    found = tuple(state[f"{path}.{part}"].shape)
                    raise ValueError(f"adapter {name!r}: {path}.{part} is {found}, and the layer takes {shape}")
            A[number, : config.r] = state[f"{path}.lora_A"]
            B[number, :, : config.r] = config.scaling * state[f"{path}.lora_B"]
        return FlatBankedLinear(base, A, B, self.choice)

    def choose(self, names: Sequence[str | None] | None) -> None:
        """Give each row of the next batches its adapter; None in a row's place leaves the model as it is.

        Raises:
            ValueError: for a name that is not there.
        """
        self.choice.spans = None
        self.choice.rows = None if names is None else torch.tensor(self._numbers(names))

    def choose_spans(self, names: Sequence[str | None], lengths: Sequence[int]) -> None:
        """Give each part of one flat row its adapter: the next batches are (1, sum of lengths), as an engine has them
        that lets the tokens of many requests lie side by side. Neighbours with one adapter share a product.

        Raises:
            ValueError: for a name that is not there, and for no parts at all.
        """
        if not names or len(names) != len(lengths):
            raise ValueError(f"{len(names)} names and {len(lengths)} lengths; give one of each for every part")
        spans: list[tuple[int, slice]] = []
        end = 0
        for number, length in zip(self._numbers(names), lengths, strict=True):
            if spans and spans[-1][0] == number:
                spans[-1] = (number, slice(spans[-1][1].start, end + length))
            else:
                spans.append((number, slice(end, end + length)))
            end += length
        self.choice.rows, self.choice.spans = None, spans

    def _numbers(self, names: Sequence[str | None]) -> list[int]:
        for name in names:
            if name not in self.names:
                there = ", ".join(str(each) for each in self.names[1:])
                raise ValueError(f"no adapter is called {name!r}; there are {there}")
        return [self.names.index(name) for name in names]
