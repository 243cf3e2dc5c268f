"""Lightning's own CLI with our model and data: what `babygpt fit`, `validate` and `test` are."""

from __future__ import annotations

import math
import os
import re
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from llm_data.datamodule import LLMDataModule
from llm_data.errors import one_line
from llm_data.tokenizers.named import loaded_tokenizer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from course.lightning_tools import ProgressLine
from course.terminal import TERMINATED
from llm_core.babygpt import BabyGPT
from llm_core.config import GPTConfig
from llm_core.run.arguments import check_arguments
from llm_core.run.callbacks import RunCheckpoints, ValidateEverySteps
from llm_core.run.place import alone_in, find_checkpoint
from llm_core.run.preflight import check_model_numbers, check_numbers, refuse_too_large
from llm_core.store.atomic import AtomicCheckpoints
from llm_core.store.registry import load_model, with_padding
from llm_core.store.resume import refuse_another_tokenizer, refuse_other_hyperparameters

TRAINER = {
    "max_steps": 2000, "val_check_interval": 200, "check_val_every_n_epoch": None, "log_every_n_steps": 10,
    "gradient_clip_val": 1.0, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip
GO_ON = "--ckpt_path last goes on from the last checkpoint"


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


def own(options: Namespace) -> dict[str, Any]:
    """The keys of a part of the configuration, without those that the parser adds for itself."""
    return {key: value for key, value in options.as_dict().items() if not key.startswith("__")}


class ConfiguredGPT(BabyGPT):
    """BabyGPT from a configuration file.

    Args:
        config: sizes of a new model; a `vocab_size` of 0 takes the tokenizer's.
        pretrained: smollm2-135m, or a folder or hub id of transformers, to train on in place of a new model; it brings
            its tokenizer.
    """

    def __init__(self, config: GPTConfig, pretrained: str | None = None, **options: Any) -> None:
        model: Any = config if pretrained is None else with_padding(*load_model(pretrained, transformers=True))[0]
        super().__init__(model=model, **options)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        data: Any = self.trainer
        refuse_another_tokenizer(checkpoint, data.datamodule.tokenizer)
        if self.trainer.state.fn == "fit":
            refuse_other_hyperparameters(checkpoint, self.hparams)


class CLI(LightningCLI):
    """Lightning's CLI, with the run's folder, and the sizes that follow from the data."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        with ExitStack() as self.held:
            super().__init__(*arguments, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Run, "run")
        parser.set_defaults({"model.config.vocab_size": 0})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {name: keys for name, keys in LightningCLI.subcommands().items() if name in ("fit", "validate", "test")}

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would put a checkpoint's values in the place of those that were asked for, in silence."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.written = check_arguments(args)
        super().parse_arguments(parser, args)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.config.subcommand]
        self.check(config)
        if config.trainer.default_root_dir is not None:
            wrong = f"trainer.default_root_dir={config.trainer.default_root_dir} has no effect"
            raise ValueError(f"{wrong}; set run.folder in its place")
        config.run.folder = os.path.expanduser(config.run.folder)
        folder = Path(config.run.folder)
        if self.config.subcommand == "fit" and getattr(rank_zero_only, "rank", 0) == 0:
            self.held.enter_context(alone_in(folder))  # before it is looked at: another run may just begin in it
        config.ckpt_path = find_checkpoint(config.ckpt_path, folder, fits=self.config.subcommand == "fit")
        if config.ckpt_path and config.trainer.overfit_batches:
            raise ValueError("trainer.overfit_batches begins with the first rows, and a run that goes on does not")
        self.settle(config, folder)

    def check(self, config: Namespace) -> None:
        """Refuse numbers that cannot be, before anything is looked at."""
        check_numbers(self.config.subcommand, config)
        check_model_numbers(config.model.config)

    def settle(self, config: Namespace, folder: Path) -> None:
        """Give the model the sizes that follow from the data, or the data the tokenizer of a pretrained model."""
        if config.model.pretrained is not None:
            default = GPTConfig(1)
            for field in fields(GPTConfig):
                value, key = config.model.config[field.name], f"model.config.{field.name}"
                if key in self.written or (value and value not in (1, getattr(default, field.name))):
                    raise ValueError(f"{key} has no effect beside model.pretrained; remove it")
            config.model.config.vocab_size = 1
            if re.fullmatch(r"char|bpe-\d+", config.data.tokenizer):
                if "data.tokenizer" in self.written:
                    wrong = f"data.tokenizer={config.data.tokenizer} makes ids that mean nothing to model.pretrained"
                    raise ValueError(f"{wrong}, which brings its own; remove it")
                config.data.tokenizer = self._kept_tokenizer(config.model.pretrained, folder / "tokenizer")
        elif not config.model.config.vocab_size:
            config.model.config.vocab_size = self._tokenizer_size(config.data)
        refuse_too_large(GPTConfig(**own(config.model.config)))

    def _kept_tokenizer(self, pretrained: str, place: Path) -> str:
        """A folder with the tokenizer of a pretrained model: the run's own, or where nothing is trained a passing one.

        Raises:
            ValueError: when another tokenizer lies where the run's would.
        """
        _, tokenizer = with_padding(*load_model(pretrained, transformers=True))
        if self.config.subcommand != "fit":
            place = Path(self.held.enter_context(tempfile.TemporaryDirectory()))
        elif place.exists():
            there = loaded_tokenizer(str(place))
            if there.backend_tokenizer.to_str() != tokenizer.backend_tokenizer.to_str():
                raise ValueError(f"{place} holds another tokenizer; move it away, or take another --run.folder")
            return str(place)
        tokenizer.save_pretrained(place)
        return str(place)

    def before_fit(self) -> None:
        config = self.config[self.config.subcommand]
        if config.run.compile and config.model.loss_chunk:
            raise ValueError("run.compile has no effect beside model.loss_chunk; remove one of them")
        if config.run.compile:
            self.model.model.compile()

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C, and we of a SIGTERM
            if stop.code == TERMINATED or subcommand != "fit":
                raise
            raise KeyboardInterrupt(GO_ON) from stop
        except Exception as error:
            path = self.config[subcommand].ckpt_path
            restoring = self.trainer._checkpoint_connector._loaded_checkpoint  # empty before and after
            if not restoring or isinstance(error, OSError):
                raise
            if isinstance(error, ValueError):
                raise ValueError(f"{path}: {error}") from error
            wrong = f"{path} is damaged inside ({type(error).__name__}: {one_line(error)})"
            raise ValueError(f"{wrong}; take another checkpoint, or a copy") from error

    def after_fit(self) -> None:
        if self.config.fit.trainer.fast_dev_run:
            print("a step of training and one of validation went well; nothing is kept")
            return
        (kept,) = [each for each in self.trainer.checkpoint_callbacks if isinstance(each, RunCheckpoints)]
        kept.save_last(self.trainer)
        if not self.trainer.is_global_zero:
            return
        val_loss = self.trainer.callback_metrics.get("val_loss", math.nan)
        losses = {"train_loss": self.model.step_loss, "val_loss": val_loss}
        told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items() if not math.isnan(loss)) or "none taken"
        print(f"{self.trainer.global_step} steps, {told}; kept in {self.trainer.default_root_dir}")

    @staticmethod
    def _tokenizer_size(options: Namespace) -> int:
        data = LLMDataModule(**{**own(options), "progress": False})
        data.prepare_data()
        data.setup("validate")
        return data.vocab_size

    def plugins(self) -> list[Any]:
        """How checkpoints are written and read; none for a strategy that does so itself."""
        return [AtomicCheckpoints()]

    def instantiate_trainer(self, **options: Any) -> Any:
        """The Trainer of the configuration, with what every run has."""
        config = self.config[self.config.subcommand]
        folder, fits = Path(config.run.folder), self.config.subcommand == "fit"
        given = self.config_init[self.config.subcommand].trainer
        options["default_root_dir"] = str(folder)
        options["callbacks"] = [*(given.callbacks or []), ProgressLine()]
        if fits and not config.trainer.fast_dev_run:
            options["callbacks"].append(RunCheckpoints(folder / "checkpoints", config.run.checkpoint_every))
            if config.trainer.check_val_every_n_epoch is None:
                options["callbacks"].append(ValidateEverySteps(config.trainer.val_check_interval))
        if config.trainer.logger in (None, True):  # what is only looked at may be in a folder that takes no files
            options["logger"] = TensorBoardLogger(folder, name="", version="") if fits else False
        options["plugins"] = [*(given.plugins or []), *self.plugins()]
        try:
            return super().instantiate_trainer(**options)
        except TypeError as error:  # for devices that are no number
            raise ValueError(str(error)) from error
