"""Files of claims are read line by line: a damaged record costs itself, and is said so."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from tiny_course import TinyCourse, write_notebook

from course import check, claims
from course.engine import pytest_plugin
from course.engine.execute import Outcome
from course.errors import NotebookError
from course.notebook import format as notebooks
from course.notebook import normalise
from course.run import history, report, runner

Command = Callable[..., tuple[int, str, str]]
A, B = (f"Module-1/notebooks/{name}.ipynb" for name in ("1_A", "2_B"))
ODD = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\r"


def line(**changes: Any) -> bytes:
    record = {"notebook": A, "kind": "predicted", "name": "a", "held": True, "detail": "", "bound": "", **changes}
    return json.dumps({key: value for key, value in record.items() if value is not None}).encode() + b"\n"


DAMAGED = [
    b"[1, 2", b"\xff" + line(), bytes(200), b"null\n", b"3\n", b'"text"\n', b"[]\n", b"{}\n", b'{"name": "x"}\n',
    b"[" * 100_000, line()[:-30], line(held="yes"), line(held=1), line(held=None), line(name=None), line(name=3),
    line(kind=[]), line(notebook=None), line(detail={}), line(bound=1), line(unit=1), line(hardware=[]),
    line(predicted=[]), line(measured={}), line(predicted=float("nan")), line(measured=float("inf")),
    line(difference=10**400), b'{"notebook": "", "kind": "", "name": "", "held": true, "predicted": 1e999}\n',
    line(name="half a pair \ud800"), line(predicted=1).replace(b"1}", b"1" + b"0" * 5000 + b"}"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(DAMAGED)))
def test_a_damaged_record_costs_itself(tmp_path: Path, number: int) -> None:
    path = tmp_path / "claims.jsonl"
    path.write_bytes(line(name="before") + DAMAGED[number].rstrip(b"\n") + b"\n" + line(name="after", held=False))
    made = claims.read(path)
    assert [record["name"] for record in made.records] == ["before", "after"]
    assert (made.held, made.damaged) == (1, 1)


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "claims.jsonl"
    monkeypatch.setenv("COURSE_CLAIMS", str(path))
    for odd in ODD:
        check.holds(f"name{odd}name", True, f"detail{odd}detail")
    check.equal("numbers", 1.5, 1.5)
    check.holds("half a pair \ud800", True)
    made = claims.read(path)
    assert [record["name"] for record in made.records[: len(ODD)]] == [f"name{odd}name" for odd in ODD]
    assert (len(made.records), made.held, made.damaged) == (len(ODD) + 2,) * 2 + (0,)


def test_where_there_is_no_file(tmp_path: Path) -> None:
    assert claims.read(tmp_path / "none") == claims.Claims([])
    assert claims.read(tmp_path) == claims.Claims([], 1)
    (tmp_path / "some").write_bytes(b"old, not read\n\n" + line())
    assert claims.read(tmp_path / "some", start=14).held == 1


def fake_kernel(monkeypatch: pytest.MonkeyPatch, written: dict[str, bytes], outputs: list[Any]) -> None:
    """A kernel that appends to the file of claims, and shows pictures."""

    async def execute(notebook: Any, folder: Path, env: dict[str, str], **_: Any) -> Outcome:
        with open(env["COURSE_CLAIMS"], "ab") as file:
            file.write(written[env["COURSE_NOTEBOOK"]])
        notebook.cells[0].outputs = notebooks.read(_holding(folder, outputs)).cells[0].outputs
        return Outcome(1.0, 1)

    monkeypatch.setattr(runner, "execute", execute)


def _holding(folder: Path, outputs: list[Any]) -> Path:
    path = folder.parent / "outputs.ipynb"
    write_notebook(path, {"source": "1", "outputs": outputs})
    return path


def picture(data: Any) -> dict[str, Any]:
    return {"output_type": "display_data", "metadata": {}, "data": {"image/png": data}}


def png(mode: str = "RGB", size: tuple[int, int] = (4, 4), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG", **options)
    return file.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_report_and_its_line_say_what_was_lost(
    tiny: TinyCourse, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1_A", "2_B"):
        tiny.lesson(name, "1")
    odd = f'cut{ODD}here <b>"quoted"</b>'
    written = {A: line(name=odd) + DAMAGED[0] + b"\n" + DAMAGED[1] + line(held=False), B: line(notebook=B)}
    fake_kernel(monkeypatch, written, [])
    status, out, err = command("run")
    assert (status, err) == (0, "")
    assert f"ok  {A}  1.0 s  0 MiB  1 claims  2 damaged" in out and f"ok  {B}  1.0 s  0 MiB  1 claims\n" in out
    folder = tiny.root / history.OUTPUT
    page = (folder / "index.html").read_text()
    assert "1 of 2 held" in page and "2 records damaged and left out" in page and "<b>&quot;" not in page
    assert [record["held"] for record in claims.read(folder / "claims.jsonl").records] == [True, False, True]
    record = history.load(folder).notebooks[A]
    assert (record.held, record.claims, record.damaged) == (1, 2, 2)

    # Whatever becomes of one notebook's claims, a run of another one has its report.
    for damage in [*DAMAGED, None]:
        path = (folder / B).with_suffix(".claims.jsonl")
        if damage is None:
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(damage)
        monkeypatch.setattr(report, "page", lambda *_: "")
        (folder / "index.html").unlink()
        status, out, err = command("run", A)
        assert (status, err) == (0, "") and "record damaged and left out" in (folder / "index.html").read_text()


def test_pytest_counts_as_the_report_does(tmp_path: Path) -> None:
    path = tmp_path / "claims.jsonl"
    path.write_bytes(b"older\n" + line(name=f"cut{ODD}here") + line(held=False) + b"".join(DAMAGED[1:2]))
    said: list[str] = []
    config: Any = SimpleNamespace(stash={pytest_plugin._CLAIMS: (path, 6)})
    pytest_plugin.pytest_terminal_summary(SimpleNamespace(write_line=said.append), config)
    assert said == ["1 claims held in 1 notebook, 1 did not, 1 record damaged"]


MARKUP = '"><script>alert(1)</script>'
BROKEN = {
    "no base64": "?", "no picture": encoded(b"not a png"), "empty": "", "a JPEG by name": encoded(b"\xff\xd8\xff"),
    "cut": encoded(png(size=(64, 64))[:60]), "only a head": encoded(png()[:33]), "not ASCII": "é" * 8,
    "markup behind": encoded(png("P")).rstrip("=") + MARKUP, "markup before": MARKUP + encoded(png("P")),
    "too large": encoded(png("1", (8000, 8000))),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_costs_itself(
    tiny: TinyCourse, command: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(report, "page", lambda *_: "")
    tiny.lesson("1_A", "1")
    good = encoded(png("RGB"))
    for outputs in ([BROKEN[name], good], [BROKEN[name]]):
        fake_kernel(monkeypatch, {A: b""}, [picture(data) for data in outputs])
        assert command("run")[0] == 0
        page = (tiny.root / history.OUTPUT / "index.html").read_text()
        assert "<script>" not in page and page.count("data:image/png") == (len(outputs) == 2)
    with pytest.raises(NotebookError, match="is no picture"):
        normalise.small_png(BROKEN[name])


@pytest.mark.parametrize("value", [None, 3, ["a"], {}, b"bytes"])
def test_a_picture_of_a_wrong_type(value: Any) -> None:
    with pytest.raises(NotebookError, match="is no picture"):
        normalise.small_png(value)


@pytest.mark.parametrize("mode", ["P", "RGB", "RGBA", "L", "LA", "1", "I;16"])
def test_a_small_picture_is_a_picture_and_stays_as_it_is(mode: str) -> None:
    once = normalise.small_png(encoded(png(mode)) + "\n")
    assert Image.open(io.BytesIO(base64.b64decode(once, validate=True))).size == (4, 4)
    assert normalise.small_png(once) == once


def test_a_palette_of_many_colours_keeps_what_is_transparent() -> None:
    image = Image.new("P", (16, 16))
    image.putpalette([value for number in range(256) for value in (number, 0, 255 - number)])
    image.putdata(range(256))
    file = io.BytesIO()
    image.save(file, "PNG", transparency=7)
    once = normalise.small_png(encoded(file.getvalue()))
    small = Image.open(io.BytesIO(base64.b64decode(once))).convert("RGBA")
    assert small.getchannel("A").getextrema() == (0, 255) and normalise.small_png(once) == once


@pytest.mark.parametrize("text", ['" onmouseover="x', "<script>x</script>", "javascript:x", "' onload='x", "&lt;i&gt;"])
def test_texts_of_a_notebook_are_no_markup_in_the_report(
    tiny: TinyCourse, command: Command, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    from html import escape
    from html.parser import HTMLParser

    tiny.lesson("1_A", "1")
    values: dict[str, Any] = {key: text for key in ("name", "kind", "detail", "bound", "unit", "hardware")}
    lines = line(**values) + line(**{**values, "kind": "predicted", "predicted": text, "measured": text})
    fake_kernel(monkeypatch, {A: lines}, [])
    monkeypatch.setattr(report, "page", lambda *_: "")
    assert command("run")[0] == 0
    page = (tiny.root / history.OUTPUT / "index.html").read_text()
    tags: list[tuple[str, list[str]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append((tag, [name for name, _ in attrs] + [value or "" for name, value in attrs if name == "href"]))

    Reader().feed(page)
    known = {"class", "charset", "name", "content", "lang", "colspan", "href", "alt", "src"}
    assert escape(text) in page and "script" not in {tag for tag, _ in tags}
    assert all(name in known or name.startswith("Module-1/") for _, names in tags for name in names)


def test_a_page_that_cannot_be_made_costs_itself(
    tiny: TinyCourse, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> str:
        raise KeyError("an output's shape")

    tiny.lesson("1_A", "1")
    tiny.lesson("2_B", "1")
    fake_kernel(monkeypatch, {A: line(), B: line(notebook=B)}, [])
    monkeypatch.setattr(report, "page", fail)
    status, out, err = command("run")
    assert (status, err) == (0, "") and out.count("no page  ") == 2 and "2 of 2 notebooks ran to the end" in out
    assert (tiny.root / history.OUTPUT / "index.html").is_file()


def test_what_is_skipped_is_counted_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "claims"
    monkeypatch.setenv("COURSE_CLAIMS", str(path))
    check.holds("here", True)
    check.skipped("peak of a GPU", "no GPU here")
    made = claims.read(path)
    assert [record["name"] for record in made.records] == ["here"] and made.held == 1
    assert [(record["name"], record["detail"]) for record in made.skipped] == [("peak of a GPU", "no GPU here")]
