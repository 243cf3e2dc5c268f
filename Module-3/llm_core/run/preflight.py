"""Numbers of a run that cannot be, found before it begins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from course.hardware import ram
from llm_core.config import GPTConfig


def check_numbers(command: str, config: Any) -> None:
    """Numbers that Lightning or torch would meet later, with a traceback or with none.

    Raises:
        ValueError: for one that cannot be.
    """
    trainer = config.trainer
    for name, number in _numbers(config.as_dict()):
        if not math.isfinite(number):
            raise ValueError(f"{name}={number} must be a finite number")
    for name, value, least, allowed in (
        ("trainer.gradient_clip_val", trainer.gradient_clip_val, 0, "0 or more; 0 clips nothing"),
        ("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, 1, "at least 1"),
        ("trainer.log_every_n_steps", trainer.log_every_n_steps, 1, "at least 1"),
        ("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch, 1, "at least 1, or null"),
    ):
        if value is not None and not value >= least:
            raise ValueError(f"{name}={value} must be {allowed}")
    interval = trainer.val_check_interval
    if isinstance(interval, (int, float)) and not interval > 0:
        raise ValueError(f"trainer.val_check_interval={interval} must be above 0")
    if not config.run.folder.strip():
        raise ValueError("run.folder is empty; name a folder for the run")
    share = {"validate": "val_percent", "test": "test_percent"}.get(command)
    if share and config.data[share] == 0:
        raise ValueError(f"data.{share}=0 leaves nothing to {command} on; raise it")
    if command == "fit":
        _refuse_without_meaning(trainer)


def check_model_numbers(model: Any) -> None:
    """The same for a new model's configuration."""
    if not model.initializer_range >= 0:
        raise ValueError(f"model.config.initializer_range={model.initializer_range} must be 0 or more")
    for name in ("rms_norm_eps", "rope_theta"):
        if not model[name] > 0:
            raise ValueError(f"model.config.{name}={model[name]} must be above 0")


def _refuse_without_meaning(trainer: Any) -> None:
    """Options of the Trainer that would not do here what they say."""
    for less, more in (("min_steps", "max_steps"), ("min_epochs", "max_epochs")):
        least, most = trainer[less], trainer[more]
        if least is not None and most not in (None, -1) and least > most:
            raise ValueError(f"trainer.{less}={least} is more than {more}={most}; lower it")
    if trainer.max_steps == -1 and trainer.max_epochs is None:
        raise ValueError("trainer.max_steps=-1 is a run without an end; give trainer.max_steps or trainer.max_epochs")
    if trainer.limit_train_batches not in (None, 1.0):
        wrong = f"trainer.limit_train_batches={trainer.limit_train_batches}: an epoch goes on where the last one ended"
        raise ValueError(f"{wrong}, so it would limit nothing; take trainer.max_steps")
    interval, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if epochs is None and (isinstance(interval, bool) or not isinstance(interval, int)):
        wrong = f"trainer.val_check_interval={interval!r} must be a whole number of steps"
        raise ValueError(f"{wrong}; for epochs set it to 1.0, and trainer.check_val_every_n_epoch to their number")
    if epochs is not None and (interval not in (None, 1.0) or isinstance(interval, int)):
        wrong = f"trainer.check_val_every_n_epoch={epochs} beside trainer.val_check_interval={interval!r}"
        raise ValueError(f"{wrong}; for steps set the first to null, for epochs the second to 1.0")


def _numbers(values: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, (list, tuple)):
        for place, value in enumerate(values):
            yield from _numbers(value, f"{name}[{place}]")
    elif isinstance(values, float):
        yield name, values


def refuse_too_large(config: GPTConfig) -> None:
    """Raise a ValueError for a model whose weights alone are more than this machine's memory."""
    inner = config.num_attention_heads * config.head_dim + 2 * config.num_key_value_heads * config.head_dim
    block = config.hidden_size * (inner + config.hidden_size + 3 * config.intermediate_size)
    heads = 1 if config.tie_word_embeddings else 2
    size = 4 * (config.num_hidden_layers * block + heads * config.vocab_size * config.hidden_size)
    if size > ram():
        wrong = f"the weights of this model take {size / 2**30:,.0f} GiB, and this machine has {ram() / 2**30:,.0f}"
        raise ValueError(f"{wrong}; make model.config smaller")
