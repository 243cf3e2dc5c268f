"""`llm-scale fit` on one of its ranks: `babygpt fit` with a strategy, and with checkpoints that are sharded."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from llm_core.run.callbacks import RunCheckpoints
from llm_core.run.training_cli import CLI, TRAINER, ConfiguredGPT
from llm_data.datamodule import LLMDataModule
from pytorch_lightning.cli import SaveConfigCallback
from transformers.utils import logging as transformers_logging

from course.lightning_tools import quiet
from llm_scale.trainer.checkpoints import checkpoints_in
from llm_scale.trainer.checks import make_shares
from llm_scale.trainer.model import ParallelGPT
from llm_scale.trainer.settings import Parallel
from llm_scale.trainer.strategies import trainer_options
from llm_scale.trainer.train import EndedAtOnce, LossLog, StepCheckpoints, table

PRECISION = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "None": "32-true"}  # Lightning's short names
HARMLESS = (
    "LightningCLI's args", "Checkpoint directory .* exists", ".*could not find the monitored key",
    "The `srun` command is available", "The number of training batches .* is smaller",
    "Be aware that when using `ckpt_path`", "Since DeepSpeed handles gradient clipping internally",
    "`torch.distributed.* is deprecated", "torch.distributed is disabled, unavailable or uninitialized",
)  # fmt: skip
ELSEWHERE = {"strategy": "auto", "devices": "auto", "accelerator": "auto", "num_nodes": 1}


class ConfiguredParallelGPT(ParallelGPT, ConfiguredGPT):
    """`ParallelGPT` from a configuration file."""


class ScaleCLI(CLI):
    """`babygpt`'s command line on ranks."""

    def __init__(self, log: str | None, parallel: Parallel, *arguments: Any, **others: Any) -> None:
        self.log, self.parallel, self.shares = LossLog(log), parallel, make_shares(parallel)
        super().__init__(*arguments, **others)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": CLI.subcommands()["fit"]}

    def before_instantiate_classes(self) -> None:
        config = self.config.fit
        for key, default in ELSEWHERE.items():
            if config.trainer[key] != default:
                name = {"num_nodes": "devices"}.get(key, key)
                raise ValueError(f"trainer.{key}={config.trainer[key]} has no effect here; give --{name} in its place")
        if config.run.compile and self.parallel.strategy not in ("single", "ddp"):
            raise ValueError(f"run.compile is for single and ddp, not for strategy={self.parallel.strategy}; remove it")
        precision = str(config.trainer.precision)
        self.parallel = Parallel(**{**vars(self.parallel), "precision": PRECISION.get(precision, precision)})
        self.shares.parallel = self.parallel
        wanted, config.ckpt_path = config.ckpt_path, None
        super().before_instantiate_classes()
        config.ckpt_path = find_sharded(wanted, Path(config.run.folder) / "checkpoints")

    def instantiate_trainer(self, **options: Any) -> Any:
        """The Trainer of the configuration, on ranks, with checkpoints that are sharded."""
        self.model.parallel = self.parallel
        trainer = super().instantiate_trainer(**options, **trainer_options(self.parallel))
        run = self.config.fit.run
        sharded = StepCheckpoints(Path(run.folder) / "checkpoints", run.checkpoint_every)
        callbacks = [sharded if isinstance(each, RunCheckpoints) else each for each in trainer.callbacks]
        trainer.callbacks = [self.shares, self.log, EndedAtOnce(), *callbacks]
        return trainer

    def after_fit(self) -> None:
        super().after_fit()
        if self.trainer.is_global_zero:
            print(table(self.parallel, self.log, self.shares))


def find_sharded(wanted: str | Path | None, folder: Path) -> str | None:
    """The checkpoint that `--ckpt_path` means; None for a run that begins.

    Raises:
        ValueError: when it is not there, or a beginning would write over what the folder holds.
    """
    there = checkpoints_in(folder)
    if wanted is None and there:
        raise ValueError(f"{folder.parent} holds a run; add --ckpt_path last to go on, or take another --run.folder")
    if wanted == "last" and not there:
        print(f"llm-scale: no checkpoint in {folder} yet; beginning at step 0", file=sys.stderr)
    if wanted is None or (wanted == "last" and not there):
        return None
    path = {"last": there[0] if there else None, "best": folder / "best.ckpt"}.get(str(wanted)) or Path(wanted)
    if path.is_file():
        raise ValueError(
            f"{path} is a file, of babygpt perhaps; give last, best, or the folder of a sharded checkpoint"
        )
    if not path.is_dir():
        raise ValueError(f"ckpt_path {wanted}: no such folder; give last, best, or the folder of a sharded checkpoint")
    return str(path)


def fit(parallel: Parallel, log: str | None, arguments: Sequence[str]) -> None:
    """Train as one of the ranks that `parallel` counts, with the libraries' chatter turned off.

    Args:
        parallel: but for the precision, which stands in the configuration.
        log: file for a line of JSON a step.
        arguments: options of `babygpt fit`.
    """
    quiet()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    torch.set_float32_matmul_precision("high")  # TF32 where a GPU has it; nothing changes on a CPU
    ScaleCLI(
        log, parallel, ConfiguredParallelGPT, LLMDataModule, args=["fit", *arguments], seed_everything_default=0,
        auto_configure_optimizers=False, save_config_callback=SaveConfigCallback,
        save_config_kwargs={"overwrite": True}, parser_kwargs={"exit_on_error": False}, trainer_defaults=TRAINER,
    )  # fmt: skip
