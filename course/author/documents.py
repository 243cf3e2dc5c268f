"""The tables in the documents that are made from the plan and the records.

They stand between `<!-- generated: NAME -->` and `<!-- end generated -->`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from course.errors import CourseError
from course.files import write_text
from course.plan import timings
from course.plan.curriculum import Curriculum, Lesson, Module, link

DOCUMENTS = {"README.md": "progress", "Lesson Plan.md": "modules", "docs/DevLog-000-planning.md": "weeks"}
_BLOCK = re.compile(r"<!-- generated: (?P<name>[\w-]+) -->\n(?P<text>.*?)<!-- end generated -->", re.DOTALL)


def write(curriculum: Curriculum) -> list[str]:
    """Rewrite the blocks of every document; returns the documents that changed.

    Raises:
        CourseError: for a document or a block that is missing, or a block whose name nothing generates.
    """
    changed = []
    for name in DOCUMENTS:
        old = _read(curriculum.root, name)
        new = _rewrite(curriculum, name, old)
        if new != old:
            write_text(curriculum.root / name, new)
            changed.append(name)
    return changed


def stale(curriculum: Curriculum) -> list[tuple[str, str]]:
    """Documents whose blocks are not what the plan and the records say, each with a reason."""
    found = []
    for name in DOCUMENTS:
        try:
            old = _read(curriculum.root, name)
            if _rewrite(curriculum, name, old) != old:
                found.append((name, "its generated tables differ; `course build --documents` writes them"))
        except CourseError as error:
            found.append((name, str(error).removeprefix(f"{name}: ")))
    return found


def _read(root: Path, name: str) -> str:
    if not (root / name).is_file():
        raise CourseError(f"{name}: no such document")
    try:
        return (root / name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CourseError(f"{name}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None


def _rewrite(curriculum: Curriculum, document: str, text: str) -> str:
    makers = {"progress": progress, "modules": modules, "weeks": weeks}
    names = [match["name"] for match in _BLOCK.finditer(text)]
    if text.count("<!-- generated:") != len(names):
        raise CourseError(f"{document}: a generated block without its end, or with text on the marker's line")
    for name in names:
        if name not in makers:
            raise CourseError(f"{document}: nothing generates {name!r}; known: {', '.join(makers)}")
    if DOCUMENTS[document] not in names:
        raise CourseError(f"{document}: the block '<!-- generated: {DOCUMENTS[document]} -->' is missing")

    def block(match: re.Match[str]) -> str:
        made = makers[match["name"]](curriculum, document)
        return f"<!-- generated: {match['name']} -->\n{made}\n<!-- end generated -->"

    return _BLOCK.sub(block, text)


def progress(curriculum: Curriculum, document: str) -> str:
    """A row for each module: its weeks and phase, how many of its lessons exist, its status."""
    lines = [_cells("Weeks", "Phase", "Module", "Lessons", "Status"), "|---" * 5 + "|"]
    for module in curriculum.modules:
        done = [lesson for lesson in module.lessons if curriculum.done(lesson)]
        numbers = sorted({lesson.week for lesson in module.lessons})
        names = dict.fromkeys(curriculum.phase_of(lesson).name for lesson in module.lessons)
        title = _link_if(curriculum, f"{module.folder}/README.md", module.title, document)
        count = f"{len(done)} of {len(module.lessons)}" if module.lessons else "to be planned"
        span = _span(numbers).partition(" ")[2]
        lines.append(_cells(span, ", ".join(names), title, count, _module_status(curriculum, module)))
    total = len(curriculum.lessons)
    done_count = sum(curriculum.done(lesson) for lesson in curriculum.lessons)
    return "\n".join([*lines, "", f"{done_count} of {total} planned lessons are written."])


def modules(curriculum: Curriculum, document: str) -> str:
    """A section for each module, with a table of its notebooks and their times."""
    measured = timings.load(curriculum.root)
    parts = []
    for module in curriculum.modules:
        heading = [f"## {module.title}", "", f"**Goal.** {module.goal}", ""]
        heading += [f"**Concepts.** {', '.join(module.concepts)}.", ""]
        heading += [f"**Prerequisites.** {', '.join(module.prerequisites) or 'none'}.", ""]
        heading += [f"**Project.** {module.project}", ""]
        if module.package:
            heading += [f"**Package.** `{module.package}`", ""]
        # A lesson that is not written has no times, nor has a module without any that is.
        scales = timings.SCALES if any(curriculum.done(lesson) for lesson in module.lessons) else {}
        names = ["Notebook", "Question", *scales.values(), "Status"]
        table = [_cells(*names), "|---" * len(names) + "|"]
        for lesson in module.lessons:
            times = [timings.duration(timings.seconds(measured, scale, lesson.path)) for scale in scales]
            times = times if curriculum.done(lesson) else [""] * len(scales)
            title = _link_if(curriculum, lesson.path, f"{lesson.number}. {lesson.title}", document)
            table.append(_cells(title, lesson.question, *times, _status(curriculum, lesson)))
        parts.append("\n".join(heading + (table if module.lessons else ["Its notebooks are to be planned."])))
    return "\n\n".join(parts)


def weeks(curriculum: Curriculum, document: str) -> str:
    """A table for each phase, with a row for each lesson in the order of the weeks; a week without one says so."""
    parts = []
    for phase in curriculum.phases:
        lines = [f"### Phase {phase.number}: {phase.name} ({_span(phase.weeks)})", ""]
        lines += [_cells("Week", "Module", "Notebook", "Status", "Hardware", "Papers"), "|---" * 6 + "|"]
        for week in phase.weeks:
            lessons = [lesson for lesson in curriculum.lessons if lesson.week == week]
            for lesson in lessons:
                title = _link_if(curriculum, lesson.path, f"{lesson.number}. {lesson.title}", document)
                module = curriculum.module_of(lesson).title.split(":")[0]
                papers = "<br>".join(_paper(paper) for paper in lesson.papers)
                status = _status(curriculum, lesson)
                lines.append(_cells(str(week), module, title, status, lesson.hardware, papers))
            if not lessons:
                lines.append(_cells(str(week), "", "", "to be planned", "", ""))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _span(weeks: Sequence[int]) -> str:
    """ "week 3", "weeks 1 to 6", or "weeks 1, 2, 5" where they do not follow each other."""
    first, last = min(weeks, default=0), max(weeks, default=0)
    if len(weeks) < 2 or list(weeks) != list(range(first, last + 1)):
        return f"week{'s' * (len(weeks) != 1)} {', '.join(map(str, weeks))}".rstrip()
    return f"weeks {first} to {last}"


def _paper(text: str) -> str:
    """A paper with its arXiv number turned into a link on its title."""
    match = re.fullmatch(r"(.+? \d{4}), (.+) \(arXiv:(\d{4}\.\d{4,5})\)", text)
    return f"{match[1]}, [{match[2]}](https://arxiv.org/abs/{match[3]})" if match else text


def _status(curriculum: Curriculum, lesson: Lesson) -> str:
    return "done" if curriculum.done(lesson) else "planned"


def _module_status(curriculum: Curriculum, module: Module) -> str:
    done = [curriculum.done(lesson) for lesson in module.lessons]
    return "done" if done and all(done) else "in progress" if any(done) else "planned"


def _link_if(curriculum: Curriculum, path: str, text: str, document: str) -> str:
    return f"[{text}]({link(path, document)})" if (curriculum.root / path).is_file() else text


def _cells(*texts: str) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"
