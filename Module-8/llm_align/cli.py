"""`align`: teach a model by examples, by preferences, or by rewards of its own answers.

A mistake is one line on stderr and exit code 1; COURSE_TRACEBACK=1, or `align --traceback ...`, shows where it came
from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from course.terminal import options_of, parse, run_program

FITS = ("sft", "reward", "dpo", "ppo", "grpo")
HELP = """usage: align COMMAND [OPTIONS]

  align data arithmetic FOLDER         files to begin with, of a task whose answers a program checks
  align sft    --config Module-8/sft.yaml     learn from examples
  align reward --config Module-8/reward.yaml  learn which of two answers is preferred, as a number
  align dpo    --config Module-8/dpo.yaml     learn from pairs of answers, without a reward model
  align ppo    --config Module-8/ppo.yaml     learn from rewards of one's own answers, with a model of values
  align grpo   --config Module-8/grpo.yaml    the same, answers to one prompt compared with each other
                                       each goes on after a stop with --ckpt_path last,
                                       and trains on two devices with --devices 2
  align eval MODEL PROMPTS --reward arithmetic   answers to held-out prompts, scored, with intervals

`align COMMAND --help` lists the options; `align dpo --print_config` prints a whole configuration.
"""


def fit(command: str, arguments: Sequence[str]) -> int:
    """A training: on this device, or on ranks that it starts."""
    from llm_scale.start import joined, start_ranks
    from llm_scale.trainer.settings import Parallel

    parser = argparse.ArgumentParser(prog=f"align {command}", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--accelerator", default="auto")
    try:
        options, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; see `align --help`") from error
    place = joined()
    devices, nodes = place or ((1 if options.devices is None else options.devices), 1)
    many = "fsdp" if command == "sft" else "ddp"
    parallel = Parallel("single" if devices * nodes == 1 else many, devices, nodes, options.accelerator)
    if place is None and parallel.ranks > 1:
        return start_ranks(parallel.ranks, "llm_align", [command, *arguments], "align")
    from llm_align.command.fit import fit as fit_on_this_rank

    return fit_on_this_rank(command, parallel, rest)


def data(arguments: Sequence[str]) -> int:
    """`align data`."""
    parser = options_of("align data")
    parser.add_argument("task", help="arithmetic, functions, signatures or strict_json")
    parser.add_argument("folder", help="for sft.jsonl, prompts.jsonl, pairs.jsonl and held_out.jsonl")
    parser.add_argument("--number", type=int, default=200, help="lines of each file (200)")
    parser.add_argument("--noise", type=float, default=0.0, help="share of the pairs whose answers change places (0)")
    parser.add_argument("--seed", type=int, default=0)
    options = parse(parser, arguments)
    from llm_align.tasks.named import write_files

    for path in write_files(options.task, options.folder, options.number, options.seed, options.noise):
        print(path)
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """`align eval`."""
    parser = options_of("align eval")
    parser.add_argument("model", help="smollm2-135m, RUN/model, a run of babygpt, or a folder of transformers")
    parser.add_argument("prompts", help="a .jsonl file of prompts")
    parser.add_argument("--reward", required=True, help="a task's name, package.module:function, file.py:function, "
                        "or model:FOLDER")  # fmt: skip
    parser.add_argument("--against", help="another model, compared answer by answer")
    parser.add_argument("--max_new_tokens", type=int, default=64, help="the most of an answer (64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token each time (0)")
    parser.add_argument("--seed", type=int, default=0)
    options = parse(parser, arguments)
    from llm_align.command.evaluate import report

    print(report(options.model, options.prompts, options.reward, options.against, options.max_new_tokens,
                 options.temperature, options.seed))  # fmt: skip
    return 0


def run_command(given: Sequence[str]) -> int:
    """One command; the exit code. Help where none is named."""
    if not given or given[0] in ("-h", "--help"):
        print(HELP)
        return 0 if given else 2
    if given[0] in FITS:
        return fit(given[0], given[1:])
    commands = {"data": data, "eval": evaluate}
    if given[0] not in commands:
        raise ValueError(f"no command {given[0]!r}; choose {', '.join(FITS)}, data or eval")
    return commands[given[0]](given[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    from llm_peft.cli import told
    from llm_scale.start import joined

    advice = "--ckpt_path last goes on from the last checkpoint"
    return run_program("align", run_command, told, arguments, FITS, advice, catch_sigterm=not joined())


if __name__ == "__main__":
    sys.exit(main())
