"""The report of `course run`: `index.html`, `claims.jsonl`, a page a notebook. None needs a network."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from html import escape, unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from course import claims
from course.claims import Claims
from course.errors import CourseError, NotebookError
from course.files import write_text
from course.notebook.format import Notebook, read
from course.plan.curriculum import Curriculum
from course.run.display import clock
from course.run.history import History, Result
from course.run.selection import every_notebook


def write(curriculum: Curriculum, state: History, output: Path) -> None:
    """Write `index.html` and `claims.jsonl` from the state and the files of each notebook."""
    order = every_notebook(curriculum)
    order += sorted(set(state.notebooks).difference(order))
    paths = [path for path in order if path in state.notebooks and (curriculum.root / path).is_file()]
    made = {path: claims.read((output / path).with_suffix(".claims.jsonl")) for path in paths}
    everything = (claim for path in paths for claim in (*made[path].records, *made[path].skipped))
    lines = [json.dumps(claim, ensure_ascii=False) + "\n" for claim in everything]
    write_text(output / "claims.jsonl", "".join(lines))
    write_text(output / "index.html", _index(curriculum, state, output, made))


def page(notebook: Notebook, title: str, depth: int) -> str:
    """A notebook as one HTML file that needs no network: formulas are MathML, which browsers draw by themselves.

    Args:
        notebook: an executed notebook.
        title: for the browser's tab.
        depth: folders between the page and `index.html`, for the link back.
    """
    from jinja2 import DictLoader, pass_context
    from nbconvert.exporters import HTMLExporter

    class Exporter(HTMLExporter):
        @pass_context
        def markdown2html(self, context: Any, source: str) -> str:
            return formulas_as_mathml(super().markdown2html(context, source))

    exporter = Exporter(extra_loaders=[DictLoader({"course.html.j2": _PAGE})], template_file="course.html.j2")
    exporter.exclude_anchor_links = True
    text, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}, "back": "../" * depth + "index.html"})
    # The lessons' links to each other lead to the neighbouring page.
    return re.sub(r'href="((?:\.\./|[^":/]+/)*[^":/]+)\.ipynb"', r'href="\1.html"', text)


_FORMULA = re.compile(r"\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$]+?)\$", re.DOTALL)


def formulas_as_mathml(html: str) -> str:
    """`$...$` and `$$...$$` in HTML, outside of code, as MathML. A formula that cannot be read stays as it is."""
    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        display = "block" if match["block"] else "inline"
        latex = unescape(match["block"] or match["inline"]).strip()
        latex = re.sub(r"\\tag\{(.+?)\}", r"\\qquad (\1)", latex)  # MathML knows no equation numbers
        try:
            return convert(latex, display=display)
        except Exception:  # whatever the parser meets in a reader's own notebook must not cost the page
            return match[0]

    parts = re.split(r"(<(code|pre)\b.*?</\2>)", html, flags=re.DOTALL)
    # The split gives text, code, tag name, text, ...
    return "".join(
        _FORMULA.sub(formula, part) if index % 3 == 0 else part for index, part in enumerate(parts) if index % 3 != 2
    )


_PAGE = """\
{% extends 'lab/index.html.j2' %}
{% block html_head_js_requirejs %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block body_header %}
<body class="jp-Notebook" data-jp-theme-light="true" data-jp-theme-name="JupyterLab Light"
 style="max-width: 920px; margin: 0 auto; padding: 16px">
<p style="font: 14px sans-serif"><a href="{{ resources.back }}">all notebooks of this run</a></p>
<main>
{% endblock %}
"""


# ---- index.html ----------------------------------------------------------------------------------------


def _index(
    curriculum: Curriculum,
    state: History,
    output: Path,
    made: dict[str, Claims],
) -> str:
    paths = list(made)
    all_claims = [claim for path in paths for claim in made[path].records]
    held = sum(claim["held"] for claim in all_claims)
    good = sum(state.notebooks[path].ok for path in paths)
    seconds = sum(state.notebooks[path].seconds for path in paths)
    machines = sorted({claim["hardware"] for claim in all_claims})
    missing = [path for path in state.selection if state.finished(path) is None]
    tiles = [
        (_share(good, len(paths)), "notebooks ran to the end", good < len(paths)),
        (_share(held, len(all_claims)), "claims held", held < len(all_claims)),
        (clock(seconds), "in kernels", False),
        (
            memory(max((state.notebooks[path].peak_memory_bytes for path in paths), default=0)),
            "largest peak memory",
            False,
        ),
    ]
    body = ["<header><h1>Course run</h1>"]
    body.append(f"<p>Started {escape(state.run[:16].replace('T', ' '))}. {escape('; '.join(machines))}</p></header>")
    body.append('<section class="tiles">')
    body += [f"<div{_class('bad', bad)}><b>{value}</b><span>{label}</span></div>" for value, label, bad in tiles]
    body.append("</section>")
    if missing:
        names = ", ".join(escape(path) for path in missing)
        body.append(
            f'<p class="note">Interrupted: {len(missing)} not reached ({names}). The same command continues.</p>'
        )
    body.append("<h2>Notebooks</h2>")
    body.append('<table class="notebooks"><thead><tr><th></th><th>Notebook</th><th>Status</th><th>Time</th>')
    body.append("<th>Peak memory</th><th>Claims held</th></tr></thead><tbody>")
    body += [_row(curriculum, output, path, state.notebooks[path]) for path in paths]
    body.append("</tbody></table>")
    body += claims_table(made)
    return head("Course run") + "\n".join(body) + "\n</main></body></html>\n"


def _row(curriculum: Curriculum, output: Path, path: str, record: Result) -> str:
    copy = output / path
    picture = _first_picture(copy)
    image = f'<img alt="" src="data:image/png;base64,{picture}">' if picture else ""
    lesson = curriculum.lesson_at(path)
    name = escape(lesson.title if lesson else Path(path).stem)
    place = curriculum.module_of(lesson).title if lesson else str(Path(path).parent)
    target = quote(os.path.relpath(copy.with_suffix(".html"), output))
    title = f'<a href="{target}">{name}</a>' if copy.with_suffix(".html").is_file() else name
    details = f"<small>{escape(place)}</small>"
    if record.exercises:
        details += f"<small>{record.solved} of {record.exercises} exercises solved</small>"
    if record.error:
        details += f"<pre>{escape(chr(10).join(line.strip() for line in record.error))}</pre>"
    status = '<span class="good">ran</span>' if record.ok else '<span class="bad">failed</span>'
    held = f"{record.held}" + (f" of {record.claims}" if record.held < record.claims else "")
    for count, what in ((record.skipped, "skipped"), (record.damaged, "damaged")):
        held += f"<small>{count} {what}</small>" if count else ""
    cells = [
        ("picture", image),
        ("name", title + details),
        ("", f"{status}<small>{escape(record.finished[:16].replace('T', ' '))}</small>"),
        ("number time", f"{record.seconds:.1f} s"),
        ("number peak", memory(record.peak_memory_bytes)),
        ("number held", held),
    ]
    return "<tr>" + "".join(f"<td{_class(kind)}>{text}</td>" for kind, text in cells) + "</tr>"


def claims_table(made: Mapping[str, Claims]) -> Iterator[str]:
    """The claims of several notebooks, or of other parts of a page, under their names, as lines of HTML."""
    yield "<h2>Claims</h2><p>Each claim as it was stated. For <i>equal</i>, predicted and measured are the reference "
    yield "and ours where they differ most.</p>"
    yield '<div class="wide"><table class="claims"><thead><tr><th>Claim</th><th>Predicted</th><th>Measured</th>'
    yield "<th>Difference</th><th>Bound</th><th>Held</th><th class=hardware>Hardware</th></tr></thead>"
    for name, found in made.items():
        yield from _claim_rows(name, found)
    yield "</table></div>"


def _claim_rows(path: str, made: Claims) -> Iterator[str]:
    everything = [*made.records, *made.skipped]
    if not everything and not made.damaged:
        return
    machines = "; ".join(sorted({claim["hardware"] for claim in made.records}))
    count = f"{made.held} of {len(made.records)} held, on {machines}" if made.records else ""
    lost = f"{made.damaged} record{'s' * (made.damaged != 1)} damaged and left out" if made.damaged else ""
    left = f"{len(made.skipped)} skipped" if made.skipped else ""
    small = f"<small>{escape('; '.join(text for text in (count, left, lost) if text))}</small>"
    yield f'<tbody><tr class="group"><th colspan="7">{escape(path)} {small}</th></tr>'
    for claim in everything:
        unit = f" {claim['unit']}" if claim["unit"] else ""
        values = [number(claim.get(key)) for key in ("predicted", "measured", "difference")]
        if claim["kind"] in ("predicted", "equal") and any(values):
            cells = [
                ("number", escape(value + unit if value and claim["kind"] == "predicted" else value))
                for value in values
            ]
            middle = "".join(f"<td{_class(kind)}>{text}</td>" for kind, text in cells)
        else:
            middle = f'<td colspan="3" class="detail">{escape(claim["detail"])}</td>'
        mark = '<span class="good">held</span>' if claim["held"] else '<span class="bad">FAILED</span>'
        mark = "skipped" if claim["kind"] == "skipped" else mark
        yield (
            f"<tr><td>{escape(claim['name'])} <i>{escape(claim['kind'])}</i></td>{middle}"
            f"<td>{escape(claim['bound'])}</td><td>{mark}</td>"
            f'<td class="hardware">{escape(claim["hardware"])}</td></tr>'
        )
    yield "</tbody>"


def _first_picture(copy: Path) -> str | None:
    """The first good PNG among the outputs of an executed copy, small, as base64."""
    from course.notebook.normalise import small_png

    try:
        notebook = read(copy)
    except CourseError:
        return None
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                with contextlib.suppress(NotebookError):  # a broken one costs itself
                    return small_png(output.data["image/png"])
    return None


def number(value: Any) -> str:
    """A number of a claim in four digits; nothing for nothing."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.1f}"


def _share(part: int, whole: int) -> str:
    return f"{part:,}" if part == whole else f"{part:,} of {whole:,}"


def memory(size: int) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.2f} GiB"


def _class(name: str, wanted: bool = True) -> str:
    return f' class="{name}"' if name and wanted else ""


def head(title: str) -> str:
    """The beginning of a page, its style in it, up to the content."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head><body><main>\n"
    )
