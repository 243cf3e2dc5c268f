"""Calibration: what goes into each linear layer when a model reads some text, block by block.

A block reads what the blocks before it give *as they are quantised*, so that it can make up for them too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

Ids = Int[Tensor, "rows time"]
BATCH = 4  # rows at a time


def text_rows(texts: Iterable[str], tokenizer: Any, rows: int = 32, time: int = 256, per_text: int = 4) -> Ids:
    """Rows of tokens from the beginnings of texts, each row whole and of one text.

    Args:
        texts: documents of a corpus, for example `load_corpus("python").documents("train")`; read until it is enough.
        tokenizer: the model's.
        rows: how many.
        time: tokens of a row.
        per_text: rows of a text at most, so that many texts have a say.

    Raises:
        ValueError: when the texts are too short, or too few.
    """
    found: list[list[int]] = []
    for text in texts:
        # No more than is needed of a long text: a token has three or four characters, hardly sixteen.
        ids = tokenizer(text[: 16 * time * per_text], add_special_tokens=False)["input_ids"]
        found += [ids[start : start + time] for start in range(0, len(ids) - time + 1, time)][:per_text]
        if len(found) >= rows:
            return torch.tensor(found[:rows])
    wrong = f"the texts give {len(found)} rows of {time} tokens, and {rows} are wanted"
    raise ValueError(f"{wrong}; give more or longer texts, or ask for fewer or shorter rows")


class Moments:
    """Sums over the inputs of a layer, on the device of those inputs.

    Attributes:
        count: inputs so far, positions of all rows.
        largest: max |x| of each channel.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self._squares = torch.zeros(width, width, dtype=torch.float64, device=device)
        self._sizes = torch.zeros(width, dtype=torch.float64, device=device)
        self.largest = torch.zeros(width, device=device)

    def add(self, x: Float[Tensor, "*batch width"]) -> None:
        """Take inputs in. Products of a batch are summed in float32, the batches in float64."""
        flat = x.detach().flatten(0, -2).float()
        self.count += len(flat)
        self._squares += flat.T @ flat
        self._sizes += flat.abs().sum(dim=0)
        self.largest = torch.maximum(self.largest, flat.abs().amax(dim=0))

    @property
    def hessian(self) -> Float[Tensor, "width width"]:
        """X^T X / n in float64."""
        return self._squares / self.count

    @property
    def mean_size(self) -> Float[Tensor, " width"]:
        """Mean |x| of each channel, in float64."""
        return self._sizes / self.count

    def divided(self, scale: Float[Tensor, " width"]) -> Moments:
        """The moments of the same inputs, each channel divided by its scale."""
        made, wide = Moments(len(scale), scale.device), scale.double()
        made.count, made.largest = self.count, self.largest / scale.float()
        made._squares, made._sizes = self._squares / wide / wide[:, None], self._sizes / wide
        return made


class _Watch:
    """Hooks on layers that share what they see where they have the same input, as queries, keys and values do."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self.moments: dict[str, Moments] = {}
        self._last: tuple[Tensor, Moments] | None = None
        self._hooks = [layer.register_forward_pre_hook(self._see(name)) for name, layer in layers.items()]

    def _see(self, name: str) -> Any:
        def see(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            if self._last is None or self._last[0] is not x:
                moments = self.moments.get(name) or Moments(x.shape[-1], x.device)
                moments.add(x)
                self._last = (x, moments)
            self.moments[name] = self._last[1]

        return see

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._last = None


class _Reached(Exception):
    """The first block is about to run: its input is what was wanted."""


class Walk:
    """A model's blocks in their order, each with calls to it: one a batch of calibration rows.

    Args:
        model: a decoder whose blocks are in an `nn.ModuleList`; in evaluation mode.
        ids: calibration rows.

    Raises:
        ValueError: for no rows, ids that the model has no embedding for, or a model without such a list.
    """

    def __init__(self, model: nn.Module, ids: Ids) -> None:
        name = blocks_of(model)
        self.model, self.name = model, name
        blocks: Any = model.get_submodule(name)
        self.blocks: list[nn.Module] = list(blocks)
        if not len(ids) or ids.shape[1] < 2:
            raise ValueError(f"calibration rows have the shape {tuple(ids.shape)}; give rows of at least 2 tokens")
        ids = ids.to(next(model.parameters()).device)
        self._calls = [self._first_input(part) for part in ids.split(BATCH)]

    def _first_input(self, ids: Ids) -> tuple[list[Any], dict[str, Any]]:
        kept: list[Any] = []

        def keep(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if not args:  # a call by names alone: the hidden states are the first of them
                first = next(iter(named))
                args = (named.pop(first),)
            kept.extend((list(args), named))
            raise _Reached

        hook = self.blocks[0].register_forward_pre_hook(keep, with_kwargs=True)
        # A cache would grow with every pass over a block.
        options: dict[str, Any] = {"use_cache": False} if isinstance(self.model, PreTrainedModel) else {}
        try:
            self.model(ids, **options)
        except _Reached:
            pass
        except IndexError as error:
            raise ValueError(f"calibration rows have ids that the model does not know ({error})") from None
        finally:
            hook.remove()
        return kept[0], kept[1]

    def outputs(self, block: nn.Module, batches: int | None = None) -> Iterator[Tensor]:
        """What a block gives for each batch, of the first `batches` alone if that is asked for."""
        for args, named in self._calls[:batches]:
            result = block(*args, **named)
            yield result[0] if isinstance(result, tuple) else result

    def moments(self, block: nn.Module, layers: dict[str, nn.Module]) -> dict[str, Moments]:
        """Run a block over all batches; what its layers were given, under the same names."""
        watch = _Watch(layers)
        try:
            for _ in self.outputs(block):
                pass
        finally:
            watch.end()
        return watch.moments

    def advance(self, block: nn.Module) -> None:
        """Make the outputs of a block the inputs of the next one."""
        for number, hidden in enumerate(self.outputs(block)):
            self._calls[number][0][0] = hidden


def blocks_of(model: nn.Module) -> str:
    """The path of the list of a model's blocks: the outermost list that holds linear layers.

    Raises:
        ValueError: when there is none.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and any(isinstance(part, nn.Linear) for part in module.modules()):
            return name
    raise ValueError(f"{type(model).__name__} has no nn.ModuleList of blocks with linear layers; give a decoder model")
