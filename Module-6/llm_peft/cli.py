"""`local-lora`: fine-tune a pretrained model on this machine, talk to it, and make one plain model of it.

A mistake is one line on stderr and exit code 1; COURSE_TRACEBACK=1, or `local-lora --traceback ...`, shows where it
came from.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from course.terminal import options_of, parse, run_program

HELP = """usage: local-lora COMMAND [OPTIONS]

  local-lora fit  --config Module-6/local-lora.yaml --data.train FILE.jsonl
                                       train an adapter; with --ckpt_path last go on after a stop;
                                       with --devices 2 on two, the frozen weights cut in two (FSDP)
  local-lora chat RUN                  talk to it; also the folder of an adapter, or a model: smollm2-135m
  local-lora merge RUN FOLDER          write one plain model of base and adapter, which transformers loads
  local-lora plan smollm2-135m         what full fine-tuning, LoRA and QLoRA take, before anything is loaded;
                                       also a folder, an id of the hub, or a size: 7B, 70B

`local-lora COMMAND --help` lists the options; `local-lora fit --print_config` prints a whole configuration.
"""


def fit(arguments: Sequence[str]) -> int:
    """`local-lora fit`: on this device, or on ranks that it starts."""
    from llm_scale.start import joined, start_ranks
    from llm_scale.trainer.settings import Parallel

    parser = argparse.ArgumentParser(prog="local-lora fit", add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--accelerator", default="auto")
    try:
        options, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; see `local-lora --help`") from error
    place = joined()
    devices, nodes = place or ((1 if options.devices is None else options.devices), 1)
    strategy = "single" if devices * nodes == 1 else "fsdp"
    parallel = Parallel(strategy, devices, nodes, options.accelerator)
    if place is None and parallel.ranks > 1:
        return start_ranks(parallel.ranks, "llm_peft", ["fit", *arguments], "local-lora")
    from llm_peft.command.fit import fit as fit_on_this_rank

    return fit_on_this_rank(parallel, rest)


def chat(arguments: Sequence[str]) -> int:
    """`local-lora chat`."""
    parser = options_of("local-lora chat")
    parser.add_argument("model", help="a run's folder, an adapter's, smollm2-135m, or a folder of transformers")
    parser.add_argument("--base", help="the base model, where it lies elsewhere now")
    parser.add_argument("--system", default="", help="what the conversation begins with")
    parser.add_argument("--max_new_tokens", type=int, default=200, help="the most of an answer (200)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token each time (0)")
    parser.add_argument("--seed", type=int, default=0)
    options = parse(parser, arguments)
    if options.max_new_tokens < 1 or options.temperature < 0:
        raise ValueError("--max_new_tokens must be at least 1, and --temperature 0 or more")
    from llm_core.store.registry import load_model

    from llm_peft.command.chat import converse
    from llm_peft.command.run import find_trained, read_trained, trained_model

    if find_trained(Path(options.model).expanduser()):
        model, tokenizer = trained_model(read_trained(options.model), options.base)
    else:
        model, tokenizer = load_model(options.model, transformers=True)
    if tokenizer is None or tokenizer.chat_template is None:
        raise ValueError(f"{options.model} has no chat template; take a model that was trained on chats")

    def write(text: str) -> None:
        print(text, end="", flush=True)

    converse(model.eval(), tokenizer, _questions(), write, options.system, max_new_tokens=options.max_new_tokens,
             temperature=options.temperature, seed=options.seed)  # fmt: skip
    return 0


def _questions() -> Iterator[str]:
    """Lines of standard input; in a terminal with a mark before each."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line


def merge(arguments: Sequence[str]) -> int:
    """`local-lora merge`."""
    parser = options_of("local-lora merge")
    parser.add_argument("run", help="a run's folder, or an adapter's")
    parser.add_argument("folder", help="what to write; it must not exist yet")
    parser.add_argument("--base", help="the base model, where it lies elsewhere now")
    parser.add_argument("--dtype", default="float32", help="of the weights that are written: float32 or bfloat16")
    options = parse(parser, arguments)
    folder = Path(options.folder).expanduser()
    if folder.exists():
        raise ValueError(f"{folder} exists; give a new folder")
    from llm_core.store.registry import save_model

    from llm_peft.command.run import merged_model, read_trained
    from llm_peft.settings import DTYPES

    if options.dtype not in DTYPES:
        raise ValueError(f"--dtype {options.dtype} is none of {', '.join(DTYPES)}")
    model, tokenizer = merged_model(read_trained(options.run), options.base, DTYPES[options.dtype])
    part = folder.parent / f".{folder.name}.{os.getpid()}.part"  # a folder that is there is whole
    try:
        save_model(model, tokenizer, part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"wrote {folder}; transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r}) loads it")
    return 0


def plan(arguments: Sequence[str]) -> int:
    """`local-lora plan`."""
    parser = options_of("local-lora plan")
    parser.add_argument("base", help="smollm2-135m, a folder, an id of the hub, or a size such as 7B")
    parser.add_argument("--r", type=int, default=16, help="rank of the adapter (16)")
    parser.add_argument("--batch_size", type=int, default=1, help="rows of a batch (1)")
    parser.add_argument("--context", type=int, default=512, help="tokens of a row (512)")
    parser.add_argument("--loss_chunk", type=int, default=0, help="tokens whose logits exist at a time; 0 for all (0)")
    parser.add_argument("--dtype", default="auto", help="of frozen weights: float32, bfloat16, or auto (auto)")
    parser.add_argument("--memory", type=float, help="GB; this machine's by default")
    options = parse(parser, arguments)
    if options.memory is not None and not options.memory > 0:
        raise ValueError(f"--memory {options.memory} must be above 0")
    import torch

    from course.hardware import ram
    from llm_peft.command.plan import config_of, rows, table
    from llm_peft.lora.config import LoRAConfig
    from llm_peft.settings import FineTune

    there = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else ram()
    settings = FineTune(lora=LoRAConfig(r=options.r), dtype=options.dtype)
    found = rows(config_of(options.base), settings, options.batch_size, options.context, options.loss_chunk)
    print(table(found, there if options.memory is None else options.memory * 1e9))
    return 0


def run_command(given: Sequence[str]) -> int:
    """One command; the exit code. Help where none is named."""
    if not given or given[0] in ("-h", "--help"):
        print(HELP)
        return 0 if given else 2
    commands = {"chat": chat, "merge": merge, "plan": plan}
    if given[0] == "fit":
        return fit(given[1:])
    if given[0] not in commands:
        raise ValueError(f"no command {given[0]!r}; choose fit, chat, merge or plan")
    return commands[given[0]](given[1:])


def told(error: BaseException) -> str:
    """An error in one line."""
    from llm_core.cli import one_line
    from llm_core.cli import told as told_by_babygpt

    from llm_peft.local_lora import NothingTrained

    return one_line(error) if isinstance(error, NothingTrained) else told_by_babygpt(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    from llm_scale.start import joined

    advice = "--ckpt_path last goes on from the last checkpoint"
    return run_program("local-lora", run_command, told, arguments, "fit", advice, catch_sigterm=not joined())


if __name__ == "__main__":
    sys.exit(main())
