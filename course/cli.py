"""The command line `course`: run, record, doctor, status, build."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from course import errors
from course.errors import CourseError
from course.plan.curriculum import find_root, load
from course.terminal import INTERRUPTED, PIPE_CLOSED, ended_by_sigterm, forget_output, show_any_letter


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: whatever went wrong is one line and 2, or a signal's number."""
    show_any_letter()
    options = _parser().parse_args(arguments)
    try:
        with ended_by_sigterm():
            status = int(options.command(options))
            if sys.stdout is not None:
                sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        forget_output()
        return PIPE_CLOSED if isinstance(errors.first(error), BrokenPipeError) else errors.report(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="course",
        description="Run, check and build the notebooks of the course.",
        epilog=f"A mistake is one line and the exit code 2; {errors.SWITCH}=1 shows the traceback behind it.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, function: Callable[[argparse.Namespace], int], help: str, text: str) -> Any:
        made = commands.add_parser(
            name, help=help, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        made.set_defaults(command=function)
        return made

    run = command("run", _run, "run the lessons in order and write a report", _RUN)
    run.add_argument(
        "path", nargs="*", metavar="PATH", help="a notebook, a folder or a module; every lesson by default"
    )
    run.add_argument("--jobs", type=_positive, default=1, metavar="N", help="notebooks at a time (default 1)")
    run.add_argument("--from", dest="start", metavar="NOTEBOOK", help="start there: a path, or a part of one name")
    run.add_argument("--only-failed", action="store_true", help="what failed or was not reached in the last run")
    run.add_argument("--fresh", action="store_true", help="after Ctrl-C: run the finished ones again too")
    run.add_argument("--timeout", type=_positive, default=600, metavar="SECONDS", help="for one cell (default 600)")
    run.add_argument("--output", type=Path, metavar="DIR", help="where the report goes (default runs/course)")
    run.add_argument("--record", action="store_true", help="write the times to docs/results/notebooks.json")

    record = command("record", _record, "measure on a GPU what the course shows as recorded", _RECORD)
    record.add_argument("--list", action="store_true", help="the sections, and which hardware each was measured on")
    record.add_argument("--only", action="append", default=[], metavar="SECTION", help="this one; may be given again")
    record.add_argument("--budget", metavar="TIME", help="for everything: 8m, 480s")
    record.add_argument("--again", action="store_true", help="also what is complete for this hardware")
    record.add_argument("--toy", action="store_true", help="small sizes on any machine, into runs/record: a rehearsal")
    record.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="for sections that ask, as nanogpt=CHECKOUT"
    )
    record.add_argument("--output", type=Path, metavar="DIR", help="where the records go (default docs/results)")

    command("doctor", _doctor, "say what this machine has, what is wrong, and what to type", _DOCTOR)

    status = command("status", _status, "what you have run, when, and which exercises are solved", _STATUS)
    status.add_argument("--output", type=Path, metavar="DIR", help="where `course run` wrote (default runs/course)")

    build = command("build", _build, "execute notebooks and write them back with normalised outputs", _BUILD)
    build.add_argument("path", nargs="*", metavar="NOTEBOOK", help="a lesson, a solution, or a folder of them")
    build.add_argument("--all", action="store_true", help="execute all of them, also those that are not stale")
    build.add_argument("--check", action="store_true", help="say what is stale, without a run; exit code 1 if any is")
    build.add_argument("--documents", action="store_true", help="rewrite the generated tables of the documents")
    build.add_argument("--timeout", type=_positive, default=600, metavar="SECONDS", help="for one cell (default 600)")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


_RUN = """\
Run notebooks in the order of docs/curriculum.toml, each in a kernel of its own, and write to runs/course:
index.html (a row for each notebook, a table of every claim), claims.jsonl, and executed copies with their pages.

A notebook that fails does not stop the others; the exit code is then 1. Ctrl-C keeps what is finished (exit
code 130, after SIGTERM 143), and the same command continues: notebooks whose code has not changed since are not
run again. After a run that went through, the next one runs everything again.

One run at a time writes to a folder. A folder in which the notebooks themselves lie is refused."""

_RECORD = """\
Measure, on a machine with a GPU, every value that lessons show as recorded: in order of worth, in sections of at most
a minute, each row written to docs/results the moment it is there. A section that is complete for this hardware is not
measured again; after a time limit or Ctrl-C the same command goes on. `python -m course.record` is the same from a
checkout that is not installed; what a section lacks there it says, and the others go on.

The exit code is 1 when a section that was begun did not come to its end."""

_DOCTOR = """\
Say what this machine has (Python, torch, GPUs, memory, disk, kernels), which scale a notebook will pick and why,
and for each thing that is wrong what to type. The exit code is 1 when the course would not run."""

_STATUS = """\
For every lesson: when it was run last, how many claims held, whether its code has changed since, and how many
exercises are solved. Nothing is executed.

A lesson counts as run when `course run` finished it, or when you ran it in JupyterLab and saved it: JupyterLab
notes its Python version in a file that it saves, and the claims are then the saved lines that begin with "holds".
An exercise counts as solved when the cell that checks it ended without an error and shows a claim that holds:
in the notebook as you saved it, or in the last `course run MODULE/exercises`, whichever shows more."""

_BUILD = """\
Execute notebooks and write them back: outputs normalised, a card in the first cell, a hash of the code in the
metadata. A notebook in solutions/ also gives its copy in exercises/. Nothing is written when a cell fails or
writes to stderr.

Notebooks that are named are executed. Without a name, what is stale is mended: only what needs it is executed.

For authors. Lessons: the first cell, tagged "card", is generated. Solutions: "# BEGIN SOLUTION text" and
"# END SOLUTION" stand alone on their lines in a code cell; the lines between become one that raises
NotImplementedError("exercise: text"). A cell tagged "solution" is left out of the exercises. The cell that checks
an exercise is tagged "exercise-check"; its metadata "wrong" holds code (or a list of it) that binds a wrong
answer to the same name, with which the tests prove that the check goes red."""


def _run(options: argparse.Namespace) -> int:
    from course.run import history, output, record, runner, selection

    root = find_root()
    curriculum = load(root)
    chosen = selection.to_run(curriculum, options.path, Path.cwd())
    if options.start:
        chosen = selection.start_from(chosen, options.start, root, Path.cwd())
    if options.record and options.jobs > 1:
        raise CourseError("--record measures one notebook at a time: leave --jobs out")
    folder = (options.output or root / history.OUTPUT).resolve()
    arguments = runner.Options(chosen, folder, options.jobs, options.timeout, options.fresh, options.only_failed)
    with output.claimed(curriculum, chosen, folder):
        running = runner.Runner(curriculum, arguments)
        status = running.run()
        if options.record:
            print(record.write(curriculum, running.state, chosen))
    return status


def _record(options: argparse.Namespace) -> int:
    from course.record import command

    curriculum = load(find_root())
    if options.list:
        print(command.listing(curriculum))
        return 0
    for pair in options.option:
        if "=" not in pair:
            raise CourseError(f"--option {pair!r} must be written as name=value")
    asked = command.Options(
        tuple(options.only), command.seconds(options.budget) if options.budget else None, options.toy, options.again,
        dict(pair.split("=", 1) for pair in options.option), options.output,
    )  # fmt: skip
    return command.record(curriculum, asked)


def _doctor(options: argparse.Namespace) -> int:
    from course.doctor import doctor

    return doctor.main()


def _status(options: argparse.Namespace) -> int:
    from course.run import history, status

    root = find_root()
    return status.main(load(root), (options.output or root / history.OUTPUT).resolve())


def _build(options: argparse.Namespace) -> int:
    from course.author import build, documents
    from course.run import selection

    root = find_root()
    curriculum = load(root)
    if options.documents and options.check:
        raise CourseError("--check looks at the documents too: leave --documents out")
    if options.documents:
        for name in documents.write(curriculum):
            print(f"written  {name}")
        return 0
    chosen = selection.to_build(curriculum, options.path, Path.cwd())
    if options.check:
        return build.check(curriculum, chosen, documents=not options.path)
    return build.build_all(curriculum, chosen, execute=bool(options.path) or options.all, timeout=options.timeout)
