"""`llm-ops`: how much a service bears, what it costs, the files that put it somewhere, and the whole way there.

A mistake is one line on stderr and exit code 1; COURSE_TRACEBACK=1, or `llm-ops --traceback ...`, shows where it came
from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from course.terminal import run_program

HELP = """usage: llm-ops COMMAND [OPTIONS]

  llm-ops measure URL --costs FILE           time the steps of a running server, any with OpenAI's interface
  llm-ops capacity --costs FILE --replicas 4 what callers wait at which rate, simulated from these times
  llm-ops cost --tokens_per_second 900 --dollars 2.5
                                             dollars of a million tokens
  llm-ops deploy kubernetes --out FOLDER     files for compose, slurm, kubernetes or ray
  llm-ops way FOLDER                         from text to a model that serves, some ten minutes on two cores; the same
                                             command goes on after a stop, --quick shows it in a few

`llm-ops COMMAND --help` lists the options.
"""


def run_command(given: Sequence[str]) -> int:
    """One command; the exit code. Help where none is named."""
    if not given or given[0] in ("-h", "--help"):
        print(HELP)
        return 0 if given else 2
    commands: dict[str, Callable[[Sequence[str]], int]] = {}
    if given[0] in ("measure", "capacity", "cost"):
        from llm_ops.command.capacity import capacity, cost, measured

        commands = {"measure": measured, "capacity": capacity, "cost": cost}
    elif given[0] == "deploy":
        from llm_ops.command.deploy import deploy

        commands = {"deploy": deploy}
    elif given[0] == "way":
        from llm_ops.command.way import way

        commands = {"way": way}
    if given[0] not in commands:
        raise ValueError(f"there is no command {given[0]!r}; `llm-ops --help` lists them")
    return commands[given[0]](given[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    from llm_core.cli import told

    return run_program("llm-ops", run_command, told, arguments, "way", "the same command goes on")


if __name__ == "__main__":
    sys.exit(main())
