"""A causal language model of transformers, asked what it does before it is trusted with our rows.

Some families look ahead, overlook `position_ids`, or change the logits behind their head; none of them says so. Each
question is answered by the model itself, on a few tokens and in evaluation mode, and a model that would train on
another text or another loss than ours is refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm_core.model import GPT

if TYPE_CHECKING:  # it brings Lightning, which a model that is only asked does without
    from llm_data.datamodule import LLMDataModule

FIRST, SECOND = 7, 9  # tokens of two documents in a row


def vocab_rows(model: nn.Module) -> int:
    """Ids that a model has an embedding for: a vocabulary may be padded beyond its tokenizer's."""
    body: Any = model
    try:
        return int(body.get_input_embeddings().weight.shape[0])
    except (NotImplementedError, AttributeError):  # a model of ours, or a family with a lookup of its own
        return int(text_config(body.config).vocab_size)


def text_config(config: Any) -> Any:
    """The part of a configuration that speaks of text: models of pictures and text keep it below the top."""
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config


def max_positions(config: Any) -> int | None:
    """The longest row a model was made for; None where nothing limits it, as with ALiBi or a recurrent state."""
    config = text_config(config)
    for name in ("max_position_embeddings", "max_seq_len", "n_positions"):
        limit = getattr(config, name, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def forward_options(model: nn.Module) -> dict[str, Any]:
    """What a training step passes beside the batch: with a cache, transformers overlooks the borders of documents."""
    taken = inspect.signature(model.forward).parameters
    known = "use_cache" in taken or any(each.kind is each.VAR_KEYWORD for each in taken.values())
    return {"use_cache": False} if known else {}


def refuse_unless_it_fits(model: nn.Module, data: LLMDataModule, stage: str) -> None:
    """Raise a ValueError for ids or rows that a model is too small for, and for less text than a row."""
    rows, positions = vocab_rows(model), max_positions(model.config)
    if data.vocab_size > rows:
        raise ValueError(
            f"the tokenizer has {data.vocab_size:,} tokens and the model a vocab_size of {rows:,}; raise vocab_size, "
            "or take the tokenizer that the model was trained with"
        )
    if positions is not None and data.context > positions:
        raise ValueError(
            f"context={data.context} and the model has max_position_embeddings={positions}; lower the one or raise the "
            "other"
        )
    tokens = data.tokens("train").manifest.tokens if stage == "fit" else data.context
    if tokens < data.context:
        raise ValueError(
            f"context={data.context} and {data.corpus_name} has {tokens:,} tokens to train on; lower context, or take "
            "more text"
        )


class Questions:
    """Asks a model of another library what its rows and options make a question, each once."""

    def __init__(self) -> None:
        self._answered = set[Callable[[nn.Module], None]]()

    def __call__(self, model: nn.Module, packed: bool, chunked: bool) -> None:
        """Ask what is open.

        Args:
            model: about to see rows.
            packed: whether they hold several documents.
            chunked: whether the head is to be applied outside the model.

        Raises:
            ValueError: for an answer that would make another training.
        """
        if type(model) is GPT:
            return
        wanted = [refuse_unless_causal]
        wanted += [refuse_unless_apart] * packed + [refuse_unless_head_is_last] * chunked
        for question in wanted:
            if question not in self._answered:
                question(model)
                self._answered.add(question)


def refuse_unless_causal(model: nn.Module) -> None:
    """Raise a ValueError for a model whose earlier logits change with a later token, such as BERT without `is_decoder`.

    It would be trained on its own answers.
    """
    with _asked(model):
        ids = _ids(model)
        changed = ids.clone()
        changed[:, -1] = (ids[:, -1] + 1) % vocab_rows(model)
        before, after = (_logits(model, row)[:, :-1] for row in (ids, changed))
    if _apart(before, after, _exact(before)):
        raise ValueError(
            f"{_name(model)} looks at later tokens, and would be trained on its own answers; take a causal language "
            "model (for BERT and its kind one whose config.json has is_decoder=true)"
        )


def refuse_unless_apart(model: nn.Module) -> None:
    """Raise a ValueError for a model that lets packed documents see each other, or places them elsewhere than alone."""
    with _asked(model):
        ids = _ids(model)
        positions = torch.cat([torch.arange(FIRST), torch.arange(SECOND)])[None].to(ids.device)
        other = torch.cat([(ids[:, :FIRST] + 1) % vocab_rows(model), ids[:, FIRST:]], dim=1)
        reason = _by_length(model)
        try:
            alone = _logits(model, ids[:, FIRST:])
            packed, changed = (_logits(model, row, position_ids=positions)[:, FIRST:] for row in (ids, other))
            if _apart(packed, changed, _exact(packed)):
                reason = "lets the documents of a packed row see each other"
            # Sums of other sizes round otherwise: here a bound, not equality.
            elif not reason and _apart(packed, alone, min(1e3 * torch.finfo(packed.dtype).eps, 0.05)):
                reason = "does not count the positions of packed documents as it counts them alone"
        except TypeError as error:
            if "position_ids" not in str(error):
                raise
            reason = "takes no position_ids, and so does not know where packed documents begin"
    if reason:
        raise ValueError(f"{_name(model)} {reason}; take data.packing dynamic, static or bucketed (a document a row)")


def _by_length(model: nn.Module) -> str:
    """Why a row's length decides how its positions turn, where it does: a few tokens would not show it."""
    body: Any = model
    rope = getattr(text_config(body.config), "rope_parameters", None) or {}
    kinds = {rope.get("rope_type")} | {each.get("rope_type") for each in rope.values() if isinstance(each, dict)}
    if kinds & {"dynamic", "longrope"}:
        return "turns its positions by the length of the whole row"
    return ""


def refuse_unless_finite(model: nn.Module) -> None:
    """Raise a ValueError for a model whose weights, or whose logits, are not numbers."""
    for name, weights in model.named_parameters():
        if not bool(torch.isfinite(weights).all()):
            raise ValueError(f"{name} of the model is not finite; take another checkpoint, or train again")
    with _asked(model):
        if not bool(torch.isfinite(_logits(model, _ids(model))).all()):
            raise ValueError(f"{_name(model)} gives logits that are not finite; its config or weights are damaged")


def refuse_unless_head_is_last(model: nn.Module) -> None:
    """Raise a ValueError for a model whose logits are not `hidden @ head.T`, all that `loss_chunk` computes.

    The head's output is replaced by known numbers: what then comes out of the model is what is done behind the head.
    """
    body: Any = model
    head = body.get_output_embeddings()
    reason = ""
    if type(head) is not nn.Linear:
        reason = f"has a {type(head).__name__} for a head"
    elif head.bias is not None:
        reason = "adds a bias to its logits"
    else:
        seen: list[Tensor] = []

        def replace(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            seen[:] = [inputs[0], torch.linspace(-100, 100, output.numel()).view_as(output).to(output)]
            return seen[1]

        with _asked(model):
            ids = _ids(model)
            handle = head.register_forward_hook(replace)
            try:
                logits = _logits(model, ids)
            finally:
                handle.remove()
            hidden = getattr(body.base_model(ids, **forward_options(model)), "last_hidden_state", None)
        if not seen or hidden is None or hidden.shape != seen[0].shape or _apart(hidden, seen[0], _exact(hidden)):
            reason = "reads its head from something other than the last hidden state"
        elif not torch.equal(logits.float(), seen[1].float()):
            reason = "scales, caps or shifts its logits behind the head"
    if reason:
        raise ValueError(f"{_name(model)} {reason}, which model.loss_chunk would leave out; set model.loss_chunk to 0")


@contextmanager
def _asked(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; afterwards each part is in the mode it was in."""
    modes = {part: part.training for part in model.modules()}
    try:
        with torch.no_grad():
            model.eval()
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _ids(model: nn.Module) -> Tensor:
    """Two documents' ordinary ids, all different where the vocabulary has enough; special ones lie at its ends."""
    rows = vocab_rows(model)
    number = FIRST + SECOND
    device = next(model.parameters()).device
    return (rows // 4 + torch.arange(number, device=device) * max(1, rows // 2 // number))[None] % rows


def _logits(model: nn.Module, ids: Tensor, **inputs: Tensor) -> Tensor:
    # `forward`, not the call: a compiled model would be compiled anew for these sizes.
    logits: Tensor = model.forward(ids, **inputs, **forward_options(model)).logits
    return logits


def _exact(values: Tensor) -> float:
    """Of numbers that the same sums give: some rounding, where a kernel adds in another order."""
    return 16 * torch.finfo(values.dtype).eps


def _apart(one: Tensor, other: Tensor, bound: float) -> bool:
    """Whether two results differ by more than `bound`, as a share of the largest number."""
    gap, size = (one.float() - other.float()).abs().max().item(), one.float().abs().max().item()
    return not gap <= bound * size


def _name(model: nn.Module) -> str:
    return type(model).__name__
