"""The folder of a run: kept for one process, and the checkpoint in it that a run goes on from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from course.files import Busy, locked
from llm_core.run.arguments import SAVED
from llm_core.store.checkpoints import read_checkpoint


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
