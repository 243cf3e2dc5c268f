"""`local-lora fit`: Lightning's CLI, a run's folder and its checkpoints as `babygpt` has them, with an adapter."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from llm_core.run.preflight import check_numbers
from llm_core.run.training_cli import CLI, Run, own
from llm_core.store.hf import pretrained
from llm_core.store.registry import HUB_ID
from llm_scale.trainer.settings import Parallel
from llm_scale.trainer.train import EndedAtOnce
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from course.hardware import ram
from course.lightning_tools import quiet
from llm_peft.budget import budget
from llm_peft.chat.datamodule import ChatDataModule
from llm_peft.command.plan import folder_of
from llm_peft.command.run import export_adapter, read_trained
from llm_peft.local_lora import LocalLoRA
from llm_peft.prepare import prepare
from llm_peft.settings import FineTune
from llm_peft.sharded import FullyShardAdapter

TRAINER = {
    "max_epochs": 1, "val_check_interval": 50, "check_val_every_n_epoch": None, "log_every_n_steps": 10,
    "gradient_clip_val": 1.0, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip
HARMLESS = (
    "LightningCLI's args", "Checkpoint directory .* exists", ".*could not find the monitored key",
    "The number of training batches .* is smaller", "Be aware that when using `ckpt_path`",
)  # fmt: skip


class ConfiguredLoRA(LocalLoRA):
    """`LocalLoRA` from a configuration file.

    Args:
        base: "smollm2-135m", a folder of transformers, or an id of the hub.
        fine_tune: method, adapter, width.
    """

    def __init__(self, base: str, fine_tune: FineTune, **options: Any) -> None:
        on_gpu = torch.cuda.is_available() and fine_tune.method == "qlora"
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if on_gpu else "cpu"
        super().__init__(prepare(base, fine_tune, device), fine_tune, **options)


class LoRACLI(CLI):
    """`babygpt`'s command line with a pretrained model and instruction data, on one device or on ranks."""

    def __init__(self, parallel: Parallel, *arguments: Any, **others: Any) -> None:
        self.parallel = parallel
        super().__init__(*arguments, **others)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(Run, "run")
        parser.set_defaults({"run.folder": "runs/local-lora", "run.checkpoint_every": 50})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {"fit": CLI.subcommands()["fit"]}

    def check(self, config: Namespace) -> None:
        check_numbers("fit", config)
        for key, default in (("strategy", "auto"), ("devices", "auto"), ("num_nodes", 1)):
            if self.parallel.ranks > 1 and config.trainer[key] != default:
                raise ValueError(f"trainer.{key}={config.trainer[key]} has no effect beside --devices; remove it")
        if self.parallel.accelerator != "auto":
            if config.trainer.accelerator not in ("auto", self.parallel.accelerator):
                other = config.trainer.accelerator
                raise ValueError(
                    f"trainer.accelerator={other} beside --accelerator {self.parallel.accelerator}; keep one"
                )
            config.trainer.accelerator = self.parallel.accelerator

    def settle(self, config: Namespace, folder: Path) -> None:
        """Refuse, before the model is loaded, what this machine has no memory for."""
        given = config.model
        place = folder_of(given.base) or given.base
        if isinstance(place, str) and not HUB_ID.fullmatch(place):
            return  # loading says that there is no such model
        settings = FineTune(**{**own(given.fine_tune), "lora": _lora(given.fine_tune.lora)})
        sizes = pretrained(AutoConfig, place)
        needed = budget(sizes, settings, config.data.batch_size, config.data.context, given.loss_chunk)
        on_gpu = torch.cuda.is_available() and config.trainer.accelerator != "cpu"
        there = torch.cuda.get_device_properties(0).total_memory if on_gpu else ram()
        # Ranks of one machine without GPUs share its memory, and each loads the whole model first.
        if needed.bytes > there and (self.parallel.ranks == 1 or not on_gpu):
            wrong = f"a step takes {needed.bytes / 2**30:,.1f} GiB, and there are {there / 2**30:,.1f}"
            advice = "lower data.batch_size or data.context, or set model.fine_tune.gradient_checkpointing"
            raise ValueError(f"{wrong}; {advice} (`local-lora plan {given.base}` shows what fits)")

    def plugins(self) -> list[Any]:
        return [] if self.parallel.ranks > 1 else super().plugins()

    def instantiate_trainer(self, **options: Any) -> Any:
        """The Trainer of the configuration, on ranks where there are several."""
        if self.parallel.ranks == 1:
            return super().instantiate_trainer(**options)
        where = {
            "strategy": FullyShardAdapter(self.parallel.ranks), "devices": self.parallel.devices,
            "num_nodes": self.parallel.nodes, "accelerator": "gpu" if self.parallel.device == "cuda" else "cpu",
        }  # fmt: skip
        trainer = super().instantiate_trainer(**options, **where)
        trainer.callbacks = [EndedAtOnce(), *trainer.callbacks]
        return trainer

    def before_fit(self) -> None:
        super().before_fit()
        self.datamodule.tokenizer = self.model.prepared.tokenizer
        self.datamodule.setup("fit")
        for split, cut in self.datamodule.cut.items():
            if cut.examples and getattr(rank_zero_only, "rank", 0) == 0:
                told = f"{cut.examples} examples of {split} are longer than data.context={self.datamodule.context}"
                print(f"local-lora: {told}; their last {cut.tokens} tokens are left out", file=sys.stderr)

    def after_fit(self) -> None:
        super().after_fit()
        if self.config.fit.trainer.fast_dev_run or not self.trainer.is_global_zero:
            return
        folder = Path(self.config.fit.run.folder)
        if self.model.settings.method != "full":
            export_adapter(read_trained(folder), folder / "adapter")
            print(f"the adapter of its best checkpoint, as peft reads it: {folder / 'adapter'}")


def _lora(options: Namespace) -> Any:
    from llm_peft.lora.config import LoRAConfig

    values = own(options)
    if isinstance(values["target_modules"], list):
        values["target_modules"] = tuple(values["target_modules"])
    return LoRAConfig(**values)


def fit(parallel: Parallel, arguments: Sequence[str]) -> int:
    """Train, as one of the ranks that `parallel` counts; the exit code."""
    quiet()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    torch.set_float32_matmul_precision("high")
    LoRACLI(
        parallel, ConfiguredLoRA, ChatDataModule, args=["fit", *arguments], seed_everything_default=0,
        auto_configure_optimizers=False, save_config_callback=SaveConfigCallback,
        save_config_kwargs={"overwrite": True}, parser_kwargs={"exit_on_error": False}, trainer_defaults=TRAINER,
    )  # fmt: skip
    return 0
