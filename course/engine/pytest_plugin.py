"""Notebooks under pytest run the same alone, side by side and in CI, and their claims are counted.

The plugin acts on nbmake's items only, and puts back whatever it changed after each of them. It is loaded by
every pytest run in its environment, so it imports nothing that is slow.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from course import claims
from course.engine.environment import kernel_environment, kernel_manager
from course.folders import temporary_folder

_CLAIMS = pytest.StashKey[tuple[Path, int]]()
_FOLDER = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Choose the file that claims are appended to: the user's COURSE_CLAIMS, or one of this session's own."""
    named = os.environ.get("COURSE_CLAIMS") or getattr(config, "workerinput", {}).get("course_claims")
    if not named:
        config.stash[_FOLDER] = tempfile.mkdtemp(prefix="course-claims-")
        named = os.path.join(config.stash[_FOLDER], "claims.jsonl")
    path = Path(named).absolute()  # a kernel works in another folder
    config.stash[_CLAIMS] = path, path.stat().st_size if path.is_file() else 0


def claims_file(config: pytest.Config) -> Path:
    """The file that the claims of this session are appended to."""
    return config.stash[_CLAIMS][0]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a worker of xdist the file, so that the session has one."""
    node.workerinput["course_claims"] = str(node.config.stash[_CLAIMS][0])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the session's own file."""
    folder = config.stash.get(_FOLDER, None)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a course's exercises out of `pytest Module-1`: unsolved ones are red. Naming their folder collects them."""
    if collection_path.name != "exercises" or not (collection_path.parent / "solutions").is_dir():
        return None
    folder = collection_path.resolve()
    named = any(_path(argument, config.invocation_params.dir).is_relative_to(folder) for argument in config.args)
    return None if named else True


def _path(argument: str, cwd: Path) -> Path:
    """The file or folder that an argument of pytest names; of a node id, what stands before its "::"."""
    path = cwd / argument
    while not path.exists() and "::" in argument:
        argument = argument.rpartition("::")[0]
        path = cwd / argument
    return path.resolve()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let each worker of pytest-xdist begin with its share of the notebooks, which take longest.

    A worker first gets a run of neighbours, and steals when it has no more. Notebooks at the end of the list would
    leave one worker with the last of them while the others have nothing to do. Every other worker begins with the last
    of its share: what later notebooks leave in the cache is made while the first ones run, and nobody waits for it.
    """
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    notebooks = [item for item in items if getattr(item, "nbmake", False)]
    others = [item for item in items if not getattr(item, "nbmake", False)]
    if workers > 1 and notebooks and others:
        items[:] = [
            item
            for worker in range(workers)
            for part, step in ((notebooks, -1 if worker % 2 else 1), (others, 1))
            for item in part[len(part) * worker // workers : len(part) * (worker + 1) // workers][::step]
        ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Around a notebook: the kernel's environment and nbclient's settings."""
    if not getattr(item, "nbmake", False):
        return (yield)
    path = Path(item.path)
    root = item.config.rootpath
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    with (
        temporary_folder() as temporary,
        _environment({**kernel_environment(os.environ, name, item.config.stash[_CLAIMS][0]), **temporary}),
        _our_client(),
    ):
        return (yield)


@contextmanager
def _environment(values: dict[str, str | None]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _our_client() -> Iterator[None]:
    from nbclient import NotebookClient

    original = NotebookClient.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        # A widget front-end waits, sometimes until the cell's timeout, for Lightning's Rich bar
        # (nbclient#312).
        self.widget_registry = {}
        self.shutdown_kernel = "immediate"  # 0.2 s instead of 3
        if self.kernel_name == "python3":  # another one was asked for by its name

            def create() -> Any:
                self.km = kernel_manager(config=self.config)
                return self.km

            self.create_kernel_manager = create

    NotebookClient.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        NotebookClient.__init__ = original  # type: ignore[method-assign]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many claims held in how many notebooks."""
    path, start = config.stash[_CLAIMS]
    if not path.is_file():
        return
    made = claims.read(path, start)
    records = [record for record in made.records if record["notebook"]]
    if records or made.damaged:
        held = sum(record["held"] for record in records)
        notebooks = len({record["notebook"] for record in records})
        broken = f", {len(records) - held} did not" if held < len(records) else ""
        lost = f", {made.damaged} record{'s' * (made.damaged != 1)} damaged" if made.damaged else ""
        left = f", {len(made.skipped)} skipped" if made.skipped else ""
        places = f"{notebooks} notebook{'s' * (notebooks != 1)}"
        terminalreporter.write_line(f"{held} claims held in {places}{broken}{left}{lost}")
