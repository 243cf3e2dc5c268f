"""Links inside the repository, in Markdown files and in the Markdown cells of notebooks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

_LINK = re.compile(r"!?\[[^\]\[]*(?:\[[^\]]*\][^\]\[]*)*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
_IMAGE = re.compile(r"""<(?:img|a)\b[^>]*?\b(?:src|href)=["']([^"']+)["']""")
_CODE = re.compile(r"```.*?```|~~~.*?~~~|``[^`]*``|`[^`\n]*`", re.DOTALL)
_OUTSIDE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//")


def markdown(path: Path) -> str:
    """The Markdown of a file, or of a notebook's Markdown cells, without code."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return _CODE.sub("", text)


def targets(text: str) -> list[str]:
    """Link targets that lie inside the repository."""
    found = _LINK.findall(text) + _IMAGE.findall(text)
    return [target for target in found if not _OUTSIDE.match(target)]


def anchors(path: Path) -> set[str]:
    """The anchors GitHub makes of the headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6}[ \t]+(.+?)[ \t#]*$", markdown(path), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        name, copy = slug, 0
        while name in found:
            copy += 1
            name = f"{slug}-{copy}"
        found.add(name)
    return found


def broken(path: Path, root: Path) -> list[str]:
    """The link targets in a file that lead nowhere in the repository, each with the reason."""
    wrong = []
    for target in targets(markdown(path)):
        name, _, anchor = target.partition("#")
        if " " in name:
            wrong.append(f"{target}: a space must be written %20")
        place = (path.parent / unquote(name)).resolve() if name else path
        if not place.is_relative_to(root):
            wrong.append(f"{target}: outside the repository")
        elif not place.exists():
            wrong.append(f"{target}: no such file")
        elif anchor and place.suffix == ".md" and unquote(anchor).lower() not in anchors(place):
            wrong.append(f"{target}: no such heading")
    return wrong
