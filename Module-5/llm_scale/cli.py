"""`llm-scale`: train BabyGPT on any number of ranks, and make one model of what they have saved.

`fit` is `babygpt fit`, with the same YAML and options, on ranks that it starts by itself, or that torchrun or Slurm has
started. A mistake is one line on stderr and exit code 1; COURSE_TRACEBACK=1 shows where it came from.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from course.terminal import options_of, parse, run_program
from llm_scale.start import joined, start_ranks
from llm_scale.trainer.settings import DEVICES, STRATEGIES, Parallel

HELP = f"""usage: llm-scale COMMAND [OPTIONS]

  llm-scale fit --config FILE.yaml --strategy fsdp --devices 2
                                       train on 2 ranks; with --ckpt_path last go on after a stop
  llm-scale plan 7B --gpus 2 --memory 80
                                       what these GPUs can train, and how
  llm-scale consolidate CHECKPOINT FOLDER
                                       make a folder that transformers loads of a sharded checkpoint

  --strategy NAME                      {", ".join(STRATEGIES)}
  --devices N                          ranks of this machine, or of each node; 1
  --accelerator NAME                   {", ".join(DEVICES)}
  --activation_checkpointing           keep each block's input alone, and compute the block again
  --zero_stage N                       deepspeed cuts: 1 states, 2 gradients too, 3 weights too; {Parallel.zero_stage}
  --timeout SECONDS                    a rank that waits for others longer ends with an error; {Parallel.timeout:g}
  --log FILE                           a line of JSON a step

and all options of `babygpt fit`; --trainer.precision, --trainer.accumulate_grad_batches, --trainer.gradient_clip_val
mean here what they mean there, and --data.batch_size is the rows of a rank. On ranks that somebody else starts:
torchrun --nproc-per-node 2 -m llm_scale -- fit ..., or srun llm-scale fit ...
"""

GO_ON = "--ckpt_path last goes on from the last checkpoint"


def fit(arguments: Sequence[str]) -> int:
    """`llm-scale fit`: on this rank, or on ranks of its own; the exit code."""
    parser = argparse.ArgumentParser(prog="llm-scale fit", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--strategy", default="single")
    parser.add_argument("--devices", type=int)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--activation_checkpointing", action="store_true")
    parser.add_argument("--zero_stage", type=int, default=Parallel.zero_stage)
    parser.add_argument("--timeout", type=float, default=Parallel.timeout)
    parser.add_argument("--log")
    try:
        options, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; see `llm-scale --help`") from error
    place = joined()
    if place and options.devices not in (None, place.devices):
        wrong = f"--devices {options.devices}, and {place.devices} ranks were started on each node"
        raise ValueError(f"{wrong}; leave --devices out, or make them equal")
    devices, nodes = place or ((options.devices if options.devices is not None else 1), 1)
    parallel = Parallel(
        options.strategy, devices, nodes, options.accelerator, zero_stage=options.zero_stage, timeout=options.timeout,
        activation_checkpointing=options.activation_checkpointing,
    )  # fmt: skip
    if place is None and parallel.ranks > 1:
        return start_ranks(parallel.ranks, "llm_scale", ["fit", *arguments])
    from llm_scale.trainer import command  # Lightning and transformers, which take seconds

    command.fit(parallel, options.log, rest)
    return 0


def plan(arguments: Sequence[str]) -> int:
    """`llm-scale plan`: a row for each strategy, and a sentence; the exit code."""
    from llm_scale import planner

    parser = options_of("llm-scale plan")
    parser.add_argument("model", help=", ".join(planner.MODELS))
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--memory", type=float, default=80.0, help="GB of each (80)")
    parser.add_argument("--time", type=int, default=0, help="positions of a row; the model's own by default")
    parser.add_argument("--method", choices=planner.METHODS_BY_WEIGHT, default="full")
    options = parse(parser, arguments)
    asked = (options.model, options.gpus, options.memory, options.time, options.method)
    print(planner.table(planner.plan(*asked), options.memory))
    print(planner.advice(*asked))
    return 0


def run_command(given: Sequence[str]) -> int:
    """One command; the exit code. Help where none is named."""
    if not given or given[0] in ("-h", "--help"):
        print(HELP)
        return 0 if given else 2
    if given[0] == "fit":
        return fit(given[1:])
    if given[0] == "plan":
        return plan(given[1:])
    if given[0] != "consolidate":
        raise ValueError(f"no command {given[0]!r}; choose fit, plan or consolidate")
    if len(given) != 3:
        raise ValueError("consolidate takes a sharded checkpoint and a new folder; see `llm-scale --help`")
    from llm_scale.trainer.checkpoints import consolidate

    consolidate(os.path.expanduser(given[1]), os.path.expanduser(given[2]))
    print(f"wrote {given[2]}; transformers.AutoModelForCausalLM.from_pretrained({given[2]!r}) loads it")
    return 0


def told(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, (ValueError, OSError)) and "llm_core.cli" not in sys.modules:
        return " ".join(str(error).split())  # without the seconds that the next line's import takes
    from llm_core.cli import told as told_by_babygpt

    return told_by_babygpt(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    # A rank ends as torchrun or Slurm has it.
    return run_program("llm-scale", run_command, told, arguments, "fit", GO_ON, catch_sigterm=not joined())
