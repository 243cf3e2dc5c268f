"""`babygpt`: train, resume, validate, test, sample and export from a shell.

`fit`, `validate`, `test` are Lightning's own CLI with our model and data; every key of a YAML file is also an option.
A mistake is one line on stderr and exit code 1; COURSE_TRACEBACK=1, or `babygpt --traceback ...`, shows where it came
from.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentError, ArgumentParser
from llm_data.datamodule import LLMDataModule
from llm_data.shards.manifest import ShardError
from pytorch_lightning import Trainer
from pytorch_lightning.cli import SaveConfigCallback
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from course.errors import SWITCH
from course.lightning_tools import quiet
from course.terminal import run_program
from llm_core.babygpt import NonFiniteLoss
from llm_core.foreign import Questions, refuse_unless_finite
from llm_core.generate import Sampling, sample_texts
from llm_core.run.arguments import check_arguments
from llm_core.run.training_cli import CLI, GO_ON, TRAINER, ConfiguredGPT, Run
from llm_core.store.registry import NAMES, load_model, save_model

HELP = """usage: babygpt COMMAND [OPTIONS]

  babygpt fit       --config FILE.yaml          train; with --ckpt_path last go on after a stop
  babygpt validate  --config FILE.yaml --ckpt_path best    loss, perplexity, bits per byte of the validation side
  babygpt test      --config FILE.yaml --ckpt_path best    the same of the test side
  babygpt sample    MODEL --prompt "def add("   write text; MODEL is a run's folder, a checkpoint, an exported folder
                                                or smollm2-135m, a real pretrained model
  babygpt export    MODEL FOLDER                write a folder that transformers loads

`babygpt COMMAND --help` lists the options; `babygpt fit --print_config` prints a whole configuration.
"""
EXPECTED = (ValueError, OSError, ShardError, NonFiniteLoss, ArgumentError, MisconfigurationException)
MOST_SAMPLES = 10_000  # of one prompt: all are drawn at once


def open_model(place: str) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """`load_model`, for a model that writes.

    Raises:
        ValueError: when there is none, or it has no tokenizer, or its numbers are none.
    """
    if place not in NAMES and not Path(os.path.expanduser(place)).exists():  # the hub is not asked for a mistyped path
        raise FileNotFoundError(f"{place}: no such folder or checkpoint, and none of the models {', '.join(NAMES)}")
    model, tokenizer = load_model(place)
    if tokenizer is None:
        raise ValueError(f"{place} has no tokenizer; give a run of babygpt, or a folder it exported")
    refuse_unless_finite(model)
    Questions()(model, packed=False, chunked=False)
    return model, tokenizer


def sample(arguments: Sequence[str]) -> None:
    """`babygpt sample`."""
    parser = ArgumentParser(prog="babygpt sample", exit_on_error=False)
    parser.add_argument("model", help="a run's folder, a checkpoint, an exported folder, or smollm2-135m")
    parser.add_argument("--prompt", nargs="+", required=True, help="how the text begins; or several beginnings")
    parser.add_argument("--num_samples", type=int, default=1, help="texts for each prompt")
    parser.add_class_arguments(Sampling, None, skip={"stop_ids", "suppress_tokens"})
    check_arguments(arguments)
    options = parser.parse_args(list(arguments)).as_dict()
    place, prompts, number = options.pop("model"), options.pop("prompt"), options.pop("num_samples")
    if not 1 <= number <= MOST_SAMPLES:
        raise ValueError(f"num_samples={number} must be from 1 to {MOST_SAMPLES}; more with another seed")
    model, tokenizer = open_model(place)
    prompts = [prompt for prompt in prompts for _ in range(number)]
    for text in sample_texts(model, tokenizer, prompts, Sampling(**options)):
        print(text, end="\n\n")


def export(arguments: Sequence[str]) -> None:
    """`babygpt export`."""
    parser = ArgumentParser(prog="babygpt export", exit_on_error=False)
    parser.add_argument("model", help="a run's folder or a checkpoint")
    parser.add_argument("folder", help="what to write; it must not exist yet")
    options = parser.parse_args(list(arguments))
    folder = Path(os.path.expanduser(options.folder))
    if folder.exists():
        raise ValueError(f"{folder} exists; give a new folder")
    part = folder.parent / f".{folder.name}.{os.getpid()}.part"  # a folder that is there is whole
    try:
        save_model(*open_model(options.model), part)
        part.rename(folder)
    except SafetensorError as error:
        raise OSError(f"{folder} cannot be written ({error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"wrote {folder}; transformers.AutoModelForCausalLM.from_pretrained({str(folder)!r}) loads it")


def one_line(error: BaseException) -> str:
    """An error's message on one line; for an unknown key with the one that may have been meant."""
    told = " ".join(line.strip() for line in str(error).splitlines())[:600] or type(error).__name__
    unknown = re.search(r"(?:does not accept option '|unrecognized arguments: --)([\w.]+)", told)
    if not unknown:
        return told
    parser = ArgumentParser()
    for parsed, name in ((ConfiguredGPT, "model"), (LLMDataModule, "data"), (Run, "run"), (Trainer, "trainer")):
        parser.add_class_arguments(parsed, name)
    parser.add_class_arguments(Sampling, None)
    close = difflib.get_close_matches(unknown[1], list(parser.get_defaults().keys()), n=1)
    return f"{told}; " + (f"did you mean {close[0]}?" if close else "`--help` after the command lists what there is")


def told(error: BaseException) -> str:
    """An error in one line, and whether it was none that is expected."""
    unexpected = "" if isinstance(error, EXPECTED) else f" ({type(error).__name__}; {SWITCH}=1 shows where)"
    return f"{one_line(error)}{unexpected}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""

    def run(given: list[str]) -> int:
        run_command(given)
        return 0 if given else 2

    return run_program("babygpt", run, told, arguments, "fit", GO_ON)


def run_command(given: Sequence[str]) -> None:
    """One command, with the libraries' chatter turned off; help where none is named."""
    if not given or given[0] in ("-h", "--help"):
        print(HELP)
        return
    quiet()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for harmless in (
        "LightningCLI's args", "Checkpoint directory .* exists", ".*could not find the monitored key",
        "The `srun` command is available", "The number of training batches .* is smaller",
        "Be aware that when using `ckpt_path`",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message=harmless)
    torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it; nothing changes on a CPU
    if given[0] in ("fit", "validate", "test"):
        CLI(
            ConfiguredGPT, LLMDataModule, args=given, seed_everything_default=0, auto_configure_optimizers=False,
            save_config_callback=SaveConfigCallback if given[0] == "fit" else None,
            save_config_kwargs={"overwrite": True}, parser_kwargs={"exit_on_error": False}, trainer_defaults=TRAINER,
        )  # fmt: skip
    elif given[0] in ("sample", "export"):
        {"sample": sample, "export": export}[given[0]](given[1:])
    else:
        raise ValueError(f"no command {given[0]!r}; choose fit, validate, test, sample or export")


if __name__ == "__main__":
    sys.exit(main())
