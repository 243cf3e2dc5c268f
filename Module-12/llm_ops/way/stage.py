"""A stage of the way, and its seal: what it read, what it left, what it found, and that all of its claims held."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from course.files import write_text
from llm_ops.way.settings import Settings

DONE, BEGUN, CLAIMS = "done.json", "begun.json", "claims.jsonl"


@dataclass(frozen=True)
class Made:
    """What a stage gives back.

    Attributes:
        files: that later stages read, relative to the stage's folder; a folder stands for the files in it.
        facts: that follow from what was read, as JSON holds them: later stages may read them.
        commands: that were run, as one would type them.
        measured: what another run would not give again, such as times; for the page alone.
    """

    files: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    commands: tuple[str, ...] = ()
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a way is walked, and with which settings."""

    root: Path
    settings: Settings

    def folder(self, stage: str) -> Path:
        """The folder of a stage, made where it is missing."""
        path = self.root / stage
        path.mkdir(parents=True, exist_ok=True)
        return path

    def facts(self, stage: str) -> dict[str, Any]:
        """What an earlier stage found."""
        facts: dict[str, Any] = json.loads((self.root / stage / DONE).read_text("utf-8"))["facts"]
        return facts


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: of it and of its folder.
        purpose: in a line.
        needs: the stages whose files it reads.
        run: does it; a claim that fails raises AssertionError.
        outside: what it reads that no stage has left, by name, each as a text that changes with it.
    """

    name: str
    purpose: str
    needs: tuple[str, ...]
    run: Callable[[Place], Made]
    outside: Callable[[Place], dict[str, str]] = lambda place: {}


@dataclass(frozen=True)
class Seal:
    """That a stage is done.

    Attributes:
        stage: its name.
        settings: it was done with.
        inputs: what was read: by stage, the digest of its seal; and what was outside.
        files: by path, SHA-256 of what was left.
        facts: that were found.
        commands: that were run.
        seconds: that it took, the last time it was begun.
        hardware: in words.
        measured: what another run would not give again.
        claims: SHA-256 of its claims' file.
    """

    stage: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    files: dict[str, str]
    facts: dict[str, Any]
    commands: list[str]
    seconds: float
    hardware: str
    measured: dict[str, Any] = field(default_factory=dict)
    claims: str = ""

    @property
    def digest(self) -> str:
        """Changes with what was left, and not with when, or from what: a stage that is done anew and leaves the same
        files changes nothing for those that read them."""
        told = [self.stage, self.settings, self.files, self.facts]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def checksums(folder: Path, files: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of files, and of those in folders, by their paths in `folder`. Locks are no content.

    Raises:
        FileNotFoundError: for one that is not there.
    """
    found = {}
    for name in files:
        path = folder / name
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there")
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if each.is_file() and each.name != "lock":
                found[each.relative_to(folder).as_posix()] = hashlib.sha256(each.read_bytes()).hexdigest()
    return found


def write_seal(folder: Path, seal: Seal) -> None:
    """Put it into the stage's folder, whole or not at all: the stage is done when this file is there."""
    write_text(folder / DONE, json.dumps(asdict(seal), indent=1, ensure_ascii=False) + "\n")


def read_seal(folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> Seal | None:
    """The seal of a stage that is done with these settings, on these inputs, and whose files are as it left them.

    None for a stage that has to be done: it never was, something it reads has changed, or a file of its own has.
    """
    seal = any_seal(folder)
    try:
        whole = seal is not None and checksums(folder, tuple(seal.files)) == seal.files
    except OSError:
        return None
    return seal if seal and whole and seal.settings == dict(settings) and seal.inputs == dict(inputs) else None


def any_seal(folder: Path) -> Seal | None:
    """The seal that lies in a folder, whatever it is worth; None where there is none that can be read."""
    try:
        seal = Seal(**json.loads((folder / DONE).read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):  # missing, cut short, or of an older form
        return None
    whole = (seal.settings, seal.inputs, seal.files, seal.facts, seal.measured)
    texts = (seal.stage, seal.hardware, seal.claims)
    fits = all(isinstance(each, dict) for each in whole) and all(isinstance(each, str) for each in texts)
    return seal if fits and isinstance(seal.seconds, float) and isinstance(seal.commands, list) else None


def claims_sum(folder: Path) -> str:
    """SHA-256 of a stage's claims; empty where it has made none."""
    path = folder / CLAIMS
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def clear(folder: Path) -> None:
    """Delete a stage's folder, its seal first: a stage that is half deleted is not done.

    Raises:
        ValueError: for a link, which leads to files that are not ours to delete.
    """
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link, and what it leads to is not deleted; remove it, or give another folder")
    if folder.exists():
        (folder / DONE).unlink(missing_ok=True)
        shutil.rmtree(folder)


def begin(folder: Path, inputs: Mapping[str, str]) -> None:
    """Make a stage's folder ready: what a killed attempt has left stays if it began with the same inputs, else goes."""
    begun = folder / BEGUN
    try:
        goes_on = json.loads(begun.read_text("utf-8")) == dict(inputs)
    except (OSError, ValueError):
        goes_on = False
    if not goes_on:
        clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (DONE, CLAIMS):
        (folder / name).unlink(missing_ok=True)
    write_text(begun, json.dumps(dict(inputs)))
