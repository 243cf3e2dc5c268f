"""The command line `course`: run, build, doctor, status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from course.curriculum import CourseError, find_root, load


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="course", description="Run, build and check the notebooks of the course."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    build = commands.add_parser(
        "build",
        help="execute notebooks and write them back with normalised outputs",
        description=_BUILD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument(
        "path", nargs="*", metavar="NOTEBOOK", help="a lesson, a solution, or a folder of them"
    )
    build.add_argument(
        "--all", action="store_true", help="execute all of them, also those that are not stale"
    )
    build.add_argument(
        "--check", action="store_true", help="say what is stale, execute nothing; exit code 1 if any is"
    )
    build.add_argument(
        "--documents", action="store_true", help="rewrite the generated tables of the documents only"
    )
    build.add_argument(
        "--timeout", type=int, default=600, metavar="SECONDS", help="for one cell (default %(default)s)"
    )
    build.set_defaults(command=_build)
    return parser


_BUILD = """\
Execute notebooks and write them back: outputs normalised, a card in the first cell, a hash of the code in the
metadata. A notebook in solutions/ also gives its copy in exercises/. Nothing is written when a cell fails or
writes to stderr.

Notebooks that are named are executed. Without a name, what is stale is mended, and only what needs it is executed."""


def _build(options: argparse.Namespace) -> int:
    from course import build

    root = find_root()
    curriculum = load(root)
    chosen = (
        build.resolve(curriculum, options.path, Path.cwd()) if options.path else build.sources(curriculum)
    )
    if options.check:
        found = [item for path in chosen for item in build.stale(curriculum, path)]
        for item in found:
            print(item)
        if not found:
            print(f"nothing is stale in {len(chosen)} notebooks")
        return 1 if found else 0
    status = 0
    for path in chosen:
        try:
            found = build.stale(curriculum, path)
            if options.path or options.all or any(item.execute for item in found):
                build.build(curriculum, path, timeout=options.timeout)
            elif found:
                build.tidy(curriculum, path)
        except CourseError as error:
            print(error, file=sys.stderr)
            status = 1
    return status
