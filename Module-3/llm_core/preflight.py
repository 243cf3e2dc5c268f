"""What is wrong with a run before it begins: a file with a key twice, numbers that cannot be, a folder in use."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from llm_core.checkpoints import read_checkpoint


class Once(yaml.SafeLoader):
    """A loader that refuses a key that stands twice; YAML's own takes the last, in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value != "<<" and seen.setdefault(str(key.value), line) != line:
                raise ValueError(f"{key.value} stands in line {seen[str(key.value)]} and in line {line}; keep one")
        return super().construct_mapping(node, deep)


def check_files(arguments: Sequence[str]) -> None:
    """Read each file that `--config` names.

    Raises:
        ValueError: for one that holds no keys, has a key twice, or a part (`data`, `model` ...) that is no mapping.
    """
    named = [after for flag, after in pairwise(arguments) if flag in ("--config", "-c")]
    named += [each.removeprefix("--config=") for each in arguments if each.startswith("--config=")]
    for path in map(Path, named):
        if not path.is_file():
            continue  # the parser tells it
        try:
            values = yaml.load(path.read_text(encoding="utf-8-sig"), Once)
        except yaml.YAMLError:
            continue  # likewise
        except ValueError as error:  # text that is not UTF-8 too
            raise ValueError(f"{path}: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} holds {type(values).__name__} and no keys; see `babygpt fit --print_config`")
        for part in ("run", "data", "model", "trainer"):
            if part in values and not isinstance(values[part], dict):
                raise ValueError(f"{path}: {part}={values[part]!r} must hold keys; see `babygpt fit --print_config`")


def check_numbers(command: str, config: Any) -> None:
    """Numbers that Lightning or torch would meet later, with a traceback or with none.

    Raises:
        ValueError: for one that cannot be.
    """
    trainer, model = config.trainer, config.model.config
    for name, value, least, allowed in (
        ("trainer.gradient_clip_val", trainer.gradient_clip_val, 0, "0 or more; 0 clips nothing"),
        ("trainer.accumulate_grad_batches", trainer.accumulate_grad_batches, 1, "at least 1"),
        ("trainer.log_every_n_steps", trainer.log_every_n_steps, 1, "at least 1"),
        ("model.config.initializer_range", model.initializer_range, 0, "0 or more"),
    ):
        if value is not None and not value >= least:
            raise ValueError(f"{name}={value} must be {allowed}")
    for name, value in (
        ("trainer.val_check_interval", trainer.val_check_interval),
        ("trainer.limit_train_batches", trainer.limit_train_batches),
        ("model.config.rms_norm_eps", model.rms_norm_eps),
        ("model.config.rope_theta", model.rope_theta),
    ):
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"{name}={value} must be above 0")
    share = {"validate": "val_percent", "test": "test_percent"}.get(command)
    if share and config.data[share] == 0:
        raise ValueError(f"data.{share}=0 leaves nothing to {command} on; raise it")


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
    if fits and configuration.is_file() and not configuration.read_bytes().startswith(b"# pytorch_lightning=="):
        raise ValueError(f"{configuration} is not of a run, which would write over it; take another --run.folder")
    path = checkpoints / f"{wanted}.ckpt" if wanted in ("last", "best") else Path(wanted or "")
    if path.is_file():
        read_checkpoint(path)
        return str(path)
    held = [name for name in ("last", "best") if (checkpoints / f"{name}.ckpt").is_file()]
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
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{folder} is in use by another run; wait for its end, or take another --run.folder") from None
    try:
        yield
    finally:
        lock.release()
