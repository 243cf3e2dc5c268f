"""What a checkpoint and the run that goes on from it must have in common, and what of the checkpoint is left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

from llm_core.config import GPTConfig

PREFIX = "model."  # the name of the model inside BabyGPT


# May change between runs of one model, or say nothing of its numbers.
FREE = (
    "attention_dropout", "initializer_range", "transformers_version", "_name_or_path", "name_or_path", "dtype",
    "torch_dtype", "architectures", "use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "vocab_size",
    "tie_word_embeddings", "output_attentions", "output_hidden_states", "return_dict", "_attn_implementation",
    "problem_type", "id2label", "label2id", "task_specific_params",
)  # fmt: skip


def refuse_another_shape(checkpoint: dict[str, Any], model: nn.Module) -> None:
    """Compare a checkpoint's weights with a model's, before torch lists every one that differs.

    Raises:
        ValueError: when they do not fit, with the keys of the configuration that differ.
    """
    found = {name.removeprefix(PREFIX): tuple(values.shape) for name, values in checkpoint["state_dict"].items()}
    wanted = {name: tuple(values.shape) for name, values in model.state_dict().items()}
    theirs = checkpoint.get("gpt_config") or checkpoint.get("hf_config") or {}
    config: Any = model.config
    ours = asdict(config) if isinstance(config, GPTConfig) else config.to_dict()
    other = [
        f"{key}={theirs[key]} (here {ours[key]})"
        for key in ours
        if key in theirs
        and key not in FREE
        and "dropout" not in key
        and "drop" not in key
        and plain_json(theirs[key]) != plain_json(ours[key])
    ]
    # Heads, rotary base and the like leave no trace in the shapes.
    if found == wanted and not other:
        return
    raise ValueError(
        f"the checkpoint is of another model: {', '.join(other) or 'its weights have other names'}; take its "
        "configuration, or begin a new run in another folder"
    )


def refuse_another_tokenizer(checkpoint: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """Compare a checkpoint's tokenizer with the data's: as many tokens are not the same tokens.

    Raises:
        ValueError: when one text would be other ids.
    """
    if "tokenizer" not in checkpoint:
        return
    texts = checkpoint["tokenizer"]["json"], tokenizer.backend_tokenizer.to_str()
    passing = ("truncation", "padding")  # of the last call
    ours, theirs = ({key: part for key, part in json.loads(text).items() if key not in passing} for text in texts)
    if ours != theirs:
        raise ValueError(
            "the model was trained with another tokenizer, and ids of data.tokenizer mean nothing to it; bpe-N is made "
            "anew for each corpus and share: for another text export the run, and give data.tokenizer the folder"
        )


def refuse_other_hyperparameters(checkpoint: dict[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compare what the optimiser's state brings along with what was asked for, and would have no effect.

    Raises:
        ValueError: where they differ.
    """
    saved = checkpoint.get("hyper_parameters", {})
    for key in ("learning_rate", "weight_decay", "betas"):
        if key in saved and plain(saved[key]) != plain(wanted[key]):
            raise ValueError(
                f"model.{key}={wanted[key]} has no effect on a run that goes on with {saved[key]}; leave it so, or "
                "export the run and begin another from it with model.pretrained"
            )


def plain_json(value: Any) -> str:
    """A value as JSON has it, where keys are texts and tuples lists."""
    return json.dumps(value, sort_keys=True, default=str)


def refuse_other_states(checkpoint: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Compare the shapes of an optimiser's states with the parameters': a fused step reads beyond a smaller one.

    Raises:
        ValueError: when one does not fit.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    for saved in checkpoint.get("optimizer_states") or []:
        for place, state in saved.get("state", {}).items():
            for name, values in state.items():
                fits = isinstance(place, int) and place < len(parameters) and isinstance(values, torch.Tensor)
                if not fits or (name != "step" and values.shape != parameters[place].shape) or values.numel() == 0:
                    raise ValueError(
                        f"the checkpoint's optimiser state {name} of parameter {place} does not fit the model; take "
                        "another checkpoint, or export this one and begin a new run from it"
                    )


def plain(value: Any) -> Any:
    """A tuple as a list: YAML knows no tuples."""
    return list(value) if isinstance(value, tuple) else value


def refuse_other_steps(before: Mapping[str, int] | None, now: Mapping[str, int] | None, epochs: bool) -> None:
    """Raise a ValueError for a run that goes on with steps of another number of rows, where that is more than it says.

    Lightning takes the length of every epoch, and of a schedule that is counted in epochs, from what is left of the
    first one; and where several batches make a step it counts them from the beginning of an epoch.

    Args:
        before, now: `rows` of a step and `batches` of one; None where the data does not say.
        epochs: whether the run's length is counted in epochs.
    """
    if before is None or now is None or before == now:
        return
    if epochs or before["batches"] > 1 or now["batches"] > 1:
        raise ValueError(
            f"a step had {before['rows']} rows in {before['batches']} batches and would have {now['rows']} in "
            f"{now['batches']}; that can change at a batch a step and with trainer.max_steps only: keep batch size, "
            "accumulation and devices"
        )


def settle_progress(checkpoint: dict[str, Any], data: str = "LLMDataModule") -> None:
    """Say of Lightning's loops where the loader stands: it is the loader's rows that a run has seen.

    Lightning notes how far a hook of its own had come, and reads an epoch's end that was saved in one hook and gone on
    from twice as another number of epochs. Here a resumed run begins between two batches: with the next epoch, or
    inside one behind so many batches.

    Args:
        checkpoint: changed in place.
        data: the name of the data module's class, under which Lightning keeps its state.
    """
    place = checkpoint.get(data, {}).get("train")
    if not place:
        return
    loops = checkpoint["loops"]["fit_loop"]
    epoch, batches = int(place["epoch"]), int(place["steps"])
    inside = int(batches > 0)
    for counts in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
        counts.update(ready=epoch + inside, started=epoch + inside, processed=epoch, completed=epoch)
    progress = loops["epoch_loop.batch_progress"]
    total = progress["total"]["ready"]
    progress["total"].update(ready=total, started=total, processed=total, completed=total)
    progress["current"].update(ready=batches, started=batches, processed=batches, completed=batches)
    progress["is_last_batch"] = False
    validation = loops["epoch_loop.val_loop.batch_progress"]
    for counts in (validation["total"], validation["current"]):
        counts.update(ready=0, started=0, processed=0, completed=0)
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]


def forget_foreign_places(checkpoint: dict[str, Any]) -> None:
    """Drop the state of each callback whose files do not plainly lie in its own folder.

    Lightning's `ModelCheckpoint` deletes the file, or folder, that the state calls the one before; its guard is passed
    by `..` and by addresses such as `local://`.
    """
    states = checkpoint.get("callbacks", {})
    for name, state in list(states.items()):
        if isinstance(state, dict) and any("path" in str(key) for key in state):
            folder = str(state.get("dirpath"))
            paths = [value for key, value in state.items() if "path" in str(key) and value and key != "dirpath"]
            paths += list(state.get("best_k_models") or {})
            if not all(_plainly_inside(str(path), folder) for path in paths):
                del states[name]


def _plainly_inside(path: str, folder: str) -> bool:
    plain = os.path.normpath(path) == path and "://" not in path
    return plain and path.endswith(".ckpt") and os.path.dirname(path) == os.path.normpath(folder)
