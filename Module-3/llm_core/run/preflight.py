"""What is wrong with a run before it begins: a file with a key twice, numbers that cannot be, a folder in use."""

from __future__ import annotations

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from course.files import Busy, locked
from course.hardware import ram
from llm_core.config import GPTConfig
from llm_core.store.checkpoints import read_checkpoint

PARTS = ("run", "data", "model", "trainer")
TEXTS = ("config", "c", *PARTS, "model.config")  # options whose value is a file, or YAML in its place
# Options that may be 007.
NAMES = ("run.folder", "data.corpus", "data.tokenizer", "data.cache", "model.pretrained", "ckpt_path", "prompt")
SAVED = "# pytorch_lightning=="  # how Lightning begins the configuration of a run
PLAIN = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
ODD = re.compile(r"[-+]?(0[0-7_]+|0[xXbBoO][0-9a-fA-F_]+|[1-9][0-9_]*(:[0-5]?[0-9])+)")  # whole numbers, to YAML
MOST_VALUES = 100_000


class Once(yaml.SafeLoader):
    """A loader that refuses what YAML's own takes in silence for something else: a key that stands twice, of which it
    takes the last, and whole numbers that are not decimal (020 is 16 to it, 1:30 is 90)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value != "<<" and str(key.value) in seen:
                raise ValueError(f"{key.value} stands in line {seen[str(key.value)]} and in line {line}; keep one")
            seen[str(key.value)] = line
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        if ":" in node.value:
            raise ValueError(f"{node.value} in line {node.start_mark.line + 1} is no plain decimal number; write one")
        return super().construct_yaml_float(node)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if not PLAIN.fullmatch(node.value):
            raise ValueError(f"{node.value} in line {node.start_mark.line + 1} is no plain decimal number; write one")
        return super().construct_yaml_int(node)


Once.add_constructor("tag:yaml.org,2002:int", Once.construct_yaml_int)
Once.add_constructor("tag:yaml.org,2002:float", Once.construct_yaml_float)


def check_arguments(arguments: Sequence[str]) -> set[str]:
    """Read each file, or text, that `--config` or the option of a part names, and each number of an option.

    Returns:
        The keys that somebody wrote, such as `data.context`. Those that Lightning saved with a run, all there are, are
        not among them.

    Raises:
        ValueError: for a file that holds no keys, has a key twice, a part (`data`, `model` ...) that is no mapping, a
            number that is not decimal, or a value that holds itself.
    """
    written: set[str] = set()
    for option, value in _options(arguments):
        if option in TEXTS:
            written |= _check_text(value, "" if option in ("config", "c") else option)
        else:
            written.add(option)
            if ODD.fullmatch(value) and option not in NAMES:
                raise ValueError(f"{option}={value} is no plain decimal number; write one")
    return written


def _options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for argument, after in pairwise([*arguments, ""]):
        if argument.startswith("-") and argument.lstrip("-")[:1].isalpha():
            name, equals, value = argument.lstrip("-").partition("=")
            yield name, value if equals else after


def _check_text(given: str, part: str) -> set[str]:
    """The keys of a file, or of YAML that was given in its place; `part` is what they belong to."""
    try:
        is_file = os.path.isfile(given)  # not Path's: a long text is no name of a file, and raises there
        text = Path(given).read_text(encoding="utf-8-sig") if is_file else given
        values = yaml.load(text, Once)
        _refuse_loops(values)
    except (yaml.YAMLError, OSError, RecursionError):
        return set()  # the parser tells it
    except ValueError as error:  # text that is not UTF-8 too
        raise ValueError(f"{given if is_file else '--' + (part or 'config')}: {error}") from error
    if not is_file and not isinstance(values, dict):
        return set()  # a file that is not there: likewise
    name = given if is_file else f"--{part or 'config'}"
    if not isinstance(values, dict):
        raise ValueError(f"{name} holds {type(values).__name__} and no keys; see `babygpt fit --print_config`")
    for each in PARTS if not part else ():
        if each in values and not isinstance(values[each], dict):
            raise ValueError(f"{name}: {each}={values[each]!r} must hold keys; see `babygpt fit --print_config`")
    keys = list(_keys(values, part))
    twice = [key for key, number in Counter(keys).items() if number > 1]
    if twice:  # as `data.context` beside `data: {context: ...}`
        raise ValueError(f"{name}: {twice[0]} is given twice; keep one")
    nested = (
        (values.get("model") or {}).get("config") if not part else values.get("config") if part == "model" else None
    )
    if isinstance(nested, str):
        keys += _check_text(nested, "model.config")
    return set() if text.startswith(SAVED) else set(keys)


def _keys(values: dict[Any, Any], before: str) -> Iterator[str]:
    for key, value in values.items():
        name = f"{before}.{key}" if before else str(key)
        yield name
        if isinstance(value, dict):
            yield from _keys(value, name)


def _refuse_loops(values: Any, above: tuple[int, ...] = (), count: list[int] | None = None) -> None:
    """Raise for a value that holds itself, through an anchor, or for anchors that make millions of one."""
    count = [0] if count is None else count
    count[0] += 1
    if id(values) in above or count[0] > MOST_VALUES:
        raise ValueError("an anchor (&) and its alias (*) hold themselves, or too much; write the values out")
    if isinstance(values, (dict, list)):
        for value in values.values() if isinstance(values, dict) else values:
            _refuse_loops(value, (*above, id(values)), count)


def check_numbers(command: str, config: Any) -> None:
    """Numbers that Lightning or torch would meet later, with a traceback or with none.

    Raises:
        ValueError: for one that cannot be.
    """
    trainer, model = config.trainer, config.model.config
    for name, number in _numbers(config.as_dict()):
        if not math.isfinite(number):
            raise ValueError(f"{name}={number} must be a finite number")
    for name, value, least, allowed in (
        ("trainer.gradient_clip_val", trainer.gradient_clip_val, 0, "0 or more; 0 clips nothing"),
        ("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, 1, "at least 1"),
        ("trainer.log_every_n_steps", trainer.log_every_n_steps, 1, "at least 1"),
        ("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch, 1, "at least 1, or null"),
        ("model.config.initializer_range", model.initializer_range, 0, "0 or more"),
    ):
        if value is not None and not value >= least:
            raise ValueError(f"{name}={value} must be {allowed}")
    for name, value in (
        ("trainer.val_check_interval", trainer.val_check_interval),
        ("model.config.rms_norm_eps", model.rms_norm_eps),
        ("model.config.rope_theta", model.rope_theta),
    ):
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"{name}={value} must be above 0")
    if not config.run.folder.strip():
        raise ValueError("run.folder is empty; name a folder for the run")
    share = {"validate": "val_percent", "test": "test_percent"}.get(command)
    if share and config.data[share] == 0:
        raise ValueError(f"data.{share}=0 leaves nothing to {command} on; raise it")
    if command == "fit":
        _refuse_without_meaning(trainer)


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


def find_checkpoint(wanted: str | Path | None, folder: Path, fits: bool) -> str | None:
    """The file that `--ckpt_path` means, and None for a run that begins.

    Args:
        wanted: last, best, a path or nothing.
        folder: of the run.
        fits: to train; else to validate or test.

    Raises:
        ValueError: when it is not there or no checkpoint; when a beginning would write over what the folder holds.
    """
    checkpoints, configuration = folder / "checkpoints", folder / "config.yaml"
    if fits and configuration.is_file() and not configuration.read_bytes().startswith(SAVED.encode()):
        raise ValueError(f"{configuration} is not of a run, which would write over it; take another --run.folder")
    path = checkpoints / f"{wanted}.ckpt" if wanted in ("last", "best") else Path(wanted or "")
    if path.is_dir() and wanted:
        raise ValueError(f"{path} is a folder, and no checkpoint; give last, best, or the path of a file")
    held = [name for name in ("last", "best") if (checkpoints / f"{name}.ckpt").is_file()]
    if path.is_file():
        if fits and held and path.parent.resolve() != checkpoints.resolve():
            wrong = f"{folder} holds a run, which one that goes on from {path} would write over"
            raise ValueError(f"{wrong}; add --ckpt_path {held[0]} to go on with it, or take another --run.folder")
        read_checkpoint(path)
        return str(path)
    if wanted == "last" and fits and held == ["best"]:  # killed between the first validation and the first last.ckpt
        print(f"babygpt: no last.ckpt in {checkpoints} yet; going on from best.ckpt", file=sys.stderr)
        return find_checkpoint("best", folder, fits)
    if wanted in (None, "last") and fits and held:
        raise ValueError(f"{folder} holds a run; add --ckpt_path {held[0]} to go on, or take another --run.folder")
    if wanted == "last" and fits:
        print(f"babygpt: no checkpoint in {checkpoints} yet; beginning at step 0", file=sys.stderr)
    elif wanted in ("last", "best"):
        raise ValueError(f"{path} is not there; train first, or give the path of a checkpoint")
    elif wanted is not None:
        raise ValueError(f"ckpt_path {wanted}: no such file; give last, best, or the path of a checkpoint")
    elif not fits:
        raise ValueError("which weights? add --ckpt_path best, last, or the path of a checkpoint")
    return None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a folder for this process; the lock ends with it, however it ends.

    Raises:
        ValueError: when another process has it.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / "lock", wait=False))
        except Busy:
            wrong = f"{folder} is in use by another run; wait for its end, or take another --run.folder"
            raise ValueError(wrong) from None
        yield
