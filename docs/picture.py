"""Make the README's two pictures: docs/picture.png from the outputs of the committed notebooks, and docs/texts.png from
the record of the real model's fine-tuning.

`python docs/picture.py` writes both; with `--check` it says whether they still show what notebooks and record say.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import textwrap
from pathlib import Path

import nbformat
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs/picture.png"
TEXTS = ROOT / "docs/texts.png"
RECORD = ROOT / "docs/results/real_model.json"
WIDTH, MARGIN, LINE = 800, 24, 21
COPY = "week1-attention/notebooks/3_Training on the Copy Task.ipynb"
LOOP = "Module-1/notebooks/1_The Mathematical Optimization Loop.ipynb"
LIGHTNING = "Module-1/notebooks/3_The Lightning Solution.ipynb"
FIGURE = (COPY, 'title=f"step {step}"')  # the notebook, and a piece of the cell that draws
CLAIMS = [  # what is compared, the notebook, and how the lines that it prints begin
    ("what a transformer should do, against what it does", COPY,
     ["holds  loss before training:", "holds  held-out sequences are copied:", "holds  exact copies without"]),
    ("an autograd engine written in the lesson, against torch", LOOP, ["holds  200 random graphs against torch:"]),
    ("a loop written by hand, against Lightning", LIGHTNING, ["holds  training loss of each of 100 steps:"]),
]  # fmt: skip
HEADINGS = (
    "A transformer learns to copy: where each digit of its answer looks in the source",
    "Every claim is checked when the lesson runs, and prints a line",
)


def outputs(name: str, piece: str = "") -> list[dict]:
    """The outputs of the notebook's cells whose source holds `piece`."""
    notebook = nbformat.read(ROOT / name, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and piece in cell.source]
    return [output for cell in cells for output in cell.outputs]


def figure() -> Image.Image:
    """The one picture that `FIGURE` names."""
    name, piece = FIGURE
    found = [output["data"]["image/png"] for output in outputs(name, piece) if "image/png" in output.get("data", {})]
    if len(found) != 1:
        sys.exit(f"{name}: {len(found)} pictures from cells with {piece!r}; one is wanted")
    return Image.open(io.BytesIO(base64.b64decode(found[0]))).convert("RGB")


def claims() -> list[str]:
    """For each of `CLAIMS` its words, then the printed lines."""
    lines = []
    for words, name, starts in CLAIMS:
        lines.append(words)
        text = "".join(output.get("text", "") for output in outputs(name))
        for start in starts:
            found = [line for line in text.splitlines() if line.startswith(start)]
            if not found:
                sys.exit(f"{name}: no output line begins with {start!r}")
            lines.append(found[0])
    return lines


def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{name}.ttf", size)


def draw(path: Path) -> None:
    """Write the picture, with the claims as text inside the file too."""
    top, lines = figure(), claims()
    canvas = Image.new("RGB", (WIDTH, 2 * MARGIN + top.height + LINE * (len(lines) + 4)), "white")
    pen = ImageDraw.Draw(canvas)
    heading, mono = font("DejaVuSans", 14), font("DejaVuSansMono", 12)
    y = MARGIN
    pen.text((MARGIN, y), HEADINGS[0], "#222222", heading)
    canvas.paste(top, ((WIDTH - top.width) // 2, y + LINE + 6))
    y += top.height + 2 * LINE + 6
    pen.text((MARGIN, y), HEADINGS[1], "#222222", heading)
    y += LINE + 8
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "holds":
            pen.text((MARGIN, y), word, "#00705a", mono)
            pen.text((MARGIN + mono.getlength(word + " "), y), rest, "#222222", mono)
        else:
            pen.text((MARGIN, y), line, "#767676", font("DejaVuSans", 12))
        y += LINE
    canvas = canvas.crop((0, 0, WIDTH, y + MARGIN // 2))
    note = PngImagePlugin.PngInfo()
    note.add_text("claims", "\n".join(lines))
    canvas.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True, pnginfo=note)


def texts() -> tuple[str, str, str]:
    """A heading, and what the real model wrote before and after it was trained on Shakespeare."""
    row = next(r for r in json.loads(RECORD.read_text("utf-8")) if r["corpus"] == "shakespeare" and not r["old_rows"])
    first, last = row["bits_per_byte"][0]["new"], row["bits_per_byte"][-1]["new"]
    heading = (
        f"A published model of 135M parameters in your own GPT, before and after {row['steps']} steps on Shakespeare: "
        f"{first:.2f} and {last:.2f} bits per byte"
    )
    return heading, row["texts"][0]["before"], row["texts"][0]["after"]


def draw_texts(path: Path) -> None:
    """Write the second picture: two texts side by side, and the same words inside the file."""
    heading, *columns = texts()
    mono, half = font("DejaVuSansMono", 12), (WIDTH - 3 * MARGIN) // 2
    wide = int(half / mono.getlength("m"))
    wrapped = [[row for line in text.split("\n") for row in textwrap.wrap(line, wide) or [""]] for text in columns]
    title = textwrap.wrap(heading, 95)
    height = 2 * MARGIN + LINE * (len(title) + 2 + max(map(len, wrapped)))
    canvas = Image.new("RGB", (WIDTH, height), "white")
    pen, y = ImageDraw.Draw(canvas), MARGIN
    for line in title:
        pen.text((MARGIN, y), line, "#222222", font("DejaVuSans", 14))
        y += LINE
    for place, (name, rows) in enumerate(zip(("before", "after"), wrapped, strict=True)):
        x = MARGIN + place * (half + MARGIN)
        pen.text((x, y + 8), name, "#00705a", mono)
        for number, row in enumerate(rows):
            pen.text((x, y + 8 + LINE * (number + 1)), row, "#222222", mono)
    note = PngImagePlugin.PngInfo()
    note.add_itxt("texts", "\n".join([heading, *columns]))
    canvas.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True, pnginfo=note)


def main(arguments: list[str]) -> None:
    if arguments == ["--check"]:
        if not TEXTS.is_file() or Image.open(TEXTS).info.get("texts") != "\n".join(texts()):
            sys.exit("docs/texts.png shows other texts than the record: `python docs/picture.py` writes it")
        if not PICTURE.is_file() or Image.open(PICTURE).info.get("claims") != "\n".join(claims()):
            sys.exit("docs/picture.png shows other numbers than the notebooks: `python docs/picture.py` writes it")
    elif arguments:
        sys.exit("usage: python docs/picture.py [--check]")
    else:
        draw(PICTURE)
        draw_texts(TEXTS)


if __name__ == "__main__":
    main(sys.argv[1:])
