"""`babygpt`: train, resume, validate, test, sample and export from a shell.

`fit`, `validate`, `test` are Lightning's own CLI with our model and data; every key of a YAML file is also an option.
What a reader can mend is one line on stderr and exit code 1; `babygpt --traceback ...` shows where it came from.
"""

from __future__ import annotations

import difflib
import math
import re
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from llm_data.datamodule import LLMDataModule
from llm_data.manifest import ShardError
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from course.lightning_tools import ProgressLine, quiet
from llm_core.babygpt import BabyGPT, NonFiniteLoss
from llm_core.checkpoints import load_checkpoint, refuse_another_tokenizer, refuse_other_hyperparameters
from llm_core.folder import load_folder, save_folder
from llm_core.model import GPTConfig
from llm_core.preflight import alone_in, check_files, check_numbers, find_checkpoint
from llm_core.pretrained import load_pretrained
from llm_core.resume import AtomicCheckpoints
from llm_core.sampling import Sampling, sample_texts

HELP = """usage: babygpt COMMAND [OPTIONS]

  babygpt fit       --config FILE.yaml          train; with --ckpt_path last go on after a stop
  babygpt validate  --config FILE.yaml --ckpt_path best    loss, perplexity, bits per byte of the validation side
  babygpt test      --config FILE.yaml --ckpt_path best    the same of the test side
  babygpt sample    MODEL --prompt "def add("   write text; MODEL is a run's folder, a checkpoint or an exported folder
  babygpt export    MODEL FOLDER                write a folder that transformers loads

`babygpt COMMAND --help` lists the options; `babygpt fit --print_config` prints a whole configuration.
"""
TRAINER = {
    "max_steps": 2000, "val_check_interval": 200, "check_val_every_n_epoch": None, "log_every_n_steps": 10,
    "gradient_clip_val": 1.0, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip
EXPECTED = (ValueError, OSError, ShardError, NonFiniteLoss, ArgumentError, MisconfigurationException)


@dataclass(frozen=True)
class Run:
    """Where a run is kept, and how it is run.

    Args:
        folder: for checkpoints (`last.ckpt`, `best.ckpt`), TensorBoard's files and the configuration.
        checkpoint_every: steps from one `last.ckpt` to the next.
        compile: put the model through torch.compile: faster steps, after a start of half a minute and more.
    """

    folder: str = "runs/babygpt"
    checkpoint_every: int = 100
    compile: bool = False

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise ValueError(f"run.checkpoint_every={self.checkpoint_every} must be at least 1")


class ConfiguredGPT(BabyGPT):
    """BabyGPT from a configuration file.

    Args:
        config: sizes of a new model; a `vocab_size` of 0 takes the tokenizer's.
        pretrained: a folder or hub id of transformers to train on, in place of a new model; it brings its tokenizer.
    """

    def __init__(self, config: GPTConfig, pretrained: str | None = None, **options: Any) -> None:
        model: Any = config if pretrained is None else load_pretrained(pretrained)[0]
        super().__init__(model=model, **options)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        data: Any = self.trainer
        refuse_another_tokenizer(checkpoint, data.datamodule.tokenizer)
        if self.trainer.state.fn == "fit":
            refuse_other_hyperparameters(checkpoint, self.hparams)


class CLI(LightningCLI):
    """Lightning's CLI, with the run's folder, and the sizes that follow from the data."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Run, "run")
        parser.set_defaults({"model.config.vocab_size": 0})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: keys for name, keys in LightningCLI.subcommands().items() if name in ("fit", "validate", "test")}

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would put a checkpoint's values in the place of those that were asked for, in silence."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.config.subcommand]
        check_numbers(self.config.subcommand, config)
        folder = Path(config.run.folder)
        config.ckpt_path = find_checkpoint(config.ckpt_path, folder, fits=self.config.subcommand == "fit")
        config.trainer.default_root_dir = str(folder)
        if config.model.pretrained is not None:
            default = GPTConfig(1)
            for field in fields(GPTConfig):
                value = config.model.config[field.name]
                if value and value != getattr(default, field.name):
                    raise ValueError(f"model.config.{field.name} has no effect beside model.pretrained; remove it")
            config.model.config.vocab_size = 1
            if re.fullmatch(r"char|bpe-\d+", config.data.tokenizer):  # ids of another tokenizer mean nothing to it
                _, tokenizer = load_pretrained(config.model.pretrained)
                tokenizer.save_pretrained(folder / "tokenizer")
                config.data.tokenizer = str(folder / "tokenizer")
        elif not config.model.config.vocab_size:
            config.model.config.vocab_size = self._tokenizer_size(config.data)

    def before_fit(self) -> None:
        config = self.config[self.config.subcommand]
        if config.run.compile and config.model.loss_chunk:
            raise ValueError("run.compile has no effect beside model.loss_chunk; remove one of them")
        if config.run.compile:
            self.model.model.compile()

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand != "fit" or not self.trainer.is_global_zero:
            return super()._run_subcommand(subcommand)
        with alone_in(Path(self.trainer.default_root_dir)):
            try:
                super()._run_subcommand(subcommand)
            except SystemExit as stop:  # what Lightning makes of Ctrl-C
                raise KeyboardInterrupt("--ckpt_path last goes on from the last checkpoint") from stop

    def after_fit(self) -> None:
        self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / "checkpoints" / "last.ckpt")
        val_loss = self.trainer.callback_metrics.get("val_loss", math.nan)
        losses = {"train_loss": self.model.step_loss, "val_loss": val_loss}
        told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items() if not math.isnan(loss)) or "none taken"
        print(f"{self.trainer.global_step} steps, {told}; kept in {self.trainer.default_root_dir}")

    @staticmethod
    def _tokenizer_size(options: Namespace) -> int:
        data = LLMDataModule(**{**options.as_dict(), "progress": False})
        data.prepare_data()
        data.setup("validate")
        return data.vocab_size

    def instantiate_trainer(self, **options: Any) -> Any:
        """The Trainer of the configuration, with what every run has."""
        config = self.config[self.config.subcommand]
        folder, run = Path(config.run.folder), config.run
        given = self.config_init[self.config.subcommand].trainer
        options["callbacks"] = [
            *(given.callbacks or []),
            ProgressLine(),
            ModelCheckpoint(
                folder / "checkpoints", every_n_train_steps=run.checkpoint_every, save_top_k=0, save_last=True,
                enable_version_counter=False,
            ),
            ModelCheckpoint(
                folder / "checkpoints", "best", monitor="val_loss", save_top_k=1, enable_version_counter=False
            ),
        ]  # fmt: skip
        if config.trainer.logger in (None, True):
            options["logger"] = TensorBoardLogger(folder, name="", version="")
        options["plugins"] = [*(given.plugins or []), AtomicCheckpoints()]
        try:
            return super().instantiate_trainer(**options)
        except TypeError as error:  # for devices that are no number
            raise ValueError(str(error)) from error


def open_model(place: str) -> tuple[nn.Module, PreTrainedTokenizerFast]:
    """Model and tokenizer of a run's folder, of a checkpoint, or of a folder of transformers.

    Raises:
        ValueError: when it is none of them, or has no tokenizer.
    """
    path = Path(place)
    if path.is_dir():
        found = [path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
        path = next((each for each in found if each.is_file()), path)
    model, tokenizer = load_folder(path) if path.is_dir() else load_checkpoint(path)
    if tokenizer is None:
        raise ValueError(f"{place} has no tokenizer; give a run of babygpt, or a folder it exported")
    return model, tokenizer


def sample(arguments: Sequence[str]) -> None:
    """`babygpt sample`."""
    parser = ArgumentParser(prog="babygpt sample", exit_on_error=False)
    parser.add_argument("model", help="a run's folder, a checkpoint or an exported folder")
    parser.add_argument("--prompt", nargs="+", required=True, help="how the text begins; or several beginnings")
    parser.add_argument("--num_samples", type=int, default=1, help="texts for each prompt")
    parser.add_class_arguments(Sampling, None, skip={"stop_ids"})
    options = parser.parse_args(list(arguments)).as_dict()
    place, prompts, number = options.pop("model"), options.pop("prompt"), options.pop("num_samples")
    if number < 1:
        raise ValueError(f"num_samples={number} must be at least 1")
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
    folder = Path(options.folder)
    part = folder.parent / f"{folder.name}.part"  # a folder that is there is whole
    for there in (folder, part):
        if there.exists():
            raise ValueError(f"{there} exists; give a new folder")
    try:
        save_folder(*open_model(options.model), part)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    traceback = "--traceback" in given
    given = [each for each in given if each != "--traceback"]
    if not given or given[0] in ("-h", "--help"):
        print(HELP)
        return 0 if given else 2
    quiet()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for harmless in ("LightningCLI's args", "Checkpoint directory .* exists", ".*could not find the monitored key"):
        warnings.filterwarnings("ignore", message=harmless)
    torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it; nothing changes on a CPU
    try:
        if given[0] in ("fit", "validate", "test"):
            check_files(given)
            CLI(
                ConfiguredGPT, LLMDataModule, args=given, seed_everything_default=0, auto_configure_optimizers=False,
                save_config_callback=SaveConfigCallback if given[0] == "fit" else None,
                save_config_kwargs={"overwrite": True}, parser_kwargs={"exit_on_error": False},
                trainer_defaults=TRAINER,
            )  # fmt: skip
        elif given[0] in ("sample", "export"):
            {"sample": sample, "export": export}[given[0]](given[1:])
        else:
            raise ValueError(f"no command {given[0]!r}; choose fit, validate, test, sample or export")
    except EXPECTED as error:
        if traceback:
            raise
        print(f"babygpt: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"babygpt: stopped; {stop}" if str(stop) else "babygpt: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
