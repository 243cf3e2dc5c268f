"""The README's picture is made from the committed notebooks, and shows their numbers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "docs/picture.py"


@pytest.fixture
def picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("picture", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_says_what_the_notebooks_say() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readmes_claims_are_those_of_notebooks() -> None:
    shown = [
        line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("holds  ")
    ]
    printed = {
        line
        for path in ROOT.glob("*/notebooks/*.ipynb")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
        for line in "".join(output.get("text", [])).splitlines()
    }
    assert len(shown) == 4 and set(shown) <= printed


def test_the_picture_is_small_and_can_be_made_again(picture: ModuleType, tmp_path: Path) -> None:
    picture.draw(tmp_path / "picture.png")
    for path in (tmp_path / "picture.png", ROOT / "docs/picture.png"):
        assert Image.open(path).width == 800
        assert path.stat().st_size < 120_000


def test_a_picture_with_other_numbers_is_stale(picture: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "claims", lambda: ["holds  something else"])
    with pytest.raises(SystemExit, match="other numbers"):
        picture.main(["--check"])


def test_the_second_picture_shows_the_record(
    picture: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture.draw_texts(tmp_path / "texts.png")
    assert Image.open(tmp_path / "texts.png").info["texts"] == Image.open(ROOT / "docs/texts.png").info["texts"]
    monkeypatch.setattr(picture, "texts", lambda: ("a heading", "before", "another text"))
    with pytest.raises(SystemExit, match="other texts than the record"):
        picture.main(["--check"])


def test_a_claim_that_is_gone_is_named(picture: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "CLAIMS", [("words", picture.COPY, ["holds  nothing like it:"])])
    with pytest.raises(SystemExit, match="no output line begins with 'holds  nothing like it:'"):
        picture.claims()
    monkeypatch.setattr(picture, "FIGURE", (picture.COPY, "no such cell"))
    with pytest.raises(SystemExit, match="0 pictures"):
        picture.figure()
