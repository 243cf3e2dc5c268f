"""`align sft | reward | dpo | ppo | grpo`: `local-lora`'s command line with the data and the objective of each."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from llm_core.run.training_cli import CLI
from llm_core.store.checkpoints import read_checkpoint
from llm_core.store.registry import save_model
from llm_peft.chat.datamodule import ChatDataModule
from llm_peft.command.fit import HARMLESS, TRAINER, ConfiguredLoRA, LoRACLI
from llm_peft.command.run import merged_model, read_trained
from llm_peft.lora.inject import adapters
from llm_peft.lora.merging import merged
from llm_peft.prepare import load_trained_state
from llm_scale.trainer.settings import Parallel
from llm_scale.trainer.train import EndedAtOnce
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import nn
from transformers.utils import logging as transformers_logging

from course.lightning_tools import quiet
from llm_align.command.configured import ConfiguredDPO, ConfiguredGRPO, ConfiguredPPO, ConfiguredReward
from llm_align.data.pairs import PairsDataModule
from llm_align.data.prompts import PromptsDataModule
from llm_align.models.scalar import ScalarModel, save_scalar

KINDS: dict[str, tuple[Any, Any]] = {
    "sft": (ConfiguredLoRA, ChatDataModule), "reward": (ConfiguredReward, PairsDataModule),
    "dpo": (ConfiguredDPO, PairsDataModule), "grpo": (ConfiguredGRPO, PromptsDataModule),
    "ppo": (ConfiguredPPO, PromptsDataModule),
}  # fmt: skip
ROUNDS = {
    "max_steps": 100,
    "max_epochs": -1,
    "val_check_interval": 20,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
}


class SFTCLI(LoRACLI):
    """`local-lora fit`, with the merged model behind it."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"run.folder": "runs/sft"})

    def after_fit(self) -> None:
        super().after_fit()
        if not self.config.fit.trainer.fast_dev_run and self.trainer.is_global_zero:
            folder = Path(self.config.fit.run.folder)
            model, tokenizer = merged_model(read_trained(folder), None, torch.float32)
            write_folder(model, tokenizer, folder / "model")


class AlignCLI(LoRACLI):
    """The same for an objective that is no plain loss, on one device, or on ranks that each hold the whole model."""

    def __init__(self, command: str, *arguments: Any, **others: Any) -> None:
        self.command = command
        super().__init__(*arguments, **others)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"run.folder": f"runs/{self.command}", "model.fine_tune.library": "ours"})

    def check(self, config: Namespace) -> None:
        super().check(config)
        if config.run.compile:
            raise ValueError("run.compile has no effect here, where parts of a model are called; remove it")
        if config.model.loss_chunk:
            raise ValueError("model.loss_chunk has no effect here, where the head is asked at answers alone; remove it")

    def settle(self, config: Namespace, folder: Path) -> None:
        """Refuse, before the model is loaded, what this machine has no memory for."""
        place = Path(os.path.expanduser(config.model.base))
        if not place.exists() or (place / "config.json").is_file():  # a run of babygpt is small
            super().settle(config, folder)

    def instantiate_trainer(self, **options: Any) -> Any:
        """The Trainer of the configuration, on ranks where there are several."""
        if self.parallel.ranks == 1:
            return super().instantiate_trainer(**options)
        backend = "nccl" if self.parallel.device == "cuda" else "gloo"
        where = {
            "strategy": DDPStrategy(process_group_backend=backend, timeout=timedelta(seconds=self.parallel.timeout)),
            "devices": self.parallel.devices, "num_nodes": self.parallel.nodes,
            "accelerator": "gpu" if self.parallel.device == "cuda" else "cpu",
        }  # fmt: skip
        trainer = CLI.instantiate_trainer(self, **options, **where)
        trainer.callbacks = [EndedAtOnce(), *trainer.callbacks]
        return trainer

    def plugins(self) -> list[Any]:
        return CLI.plugins(self)

    def before_fit(self) -> None:
        self.datamodule.tokenizer = self.model.prepared.tokenizer
        self.datamodule.setup("fit")
        left_out = getattr(self.datamodule, "left_out", 0)
        if left_out and getattr(rank_zero_only, "rank", 0) == 0:
            told = f"{left_out} pairs are longer than data.context={self.datamodule.context} and are left out"
            print(f"align: {told}", file=sys.stderr)

    def after_fit(self) -> None:
        CLI.after_fit(self)
        if self.config.fit.trainer.fast_dev_run or not self.trainer.is_global_zero:
            return
        folder = Path(self.config.fit.run.folder)
        found = (folder / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
        path = next(each for each in found if each.is_file())
        state = read_checkpoint(path)["state_dict"]
        module = self.model.cpu()
        load_trained_state(module.model, {name.removeprefix("model."): values for name, values in state.items()})
        model = getattr(module, "actor", module.model)
        plain = merged(model) if next(adapters(model), None) is not None else model
        write_folder(plain, module.prepared.tokenizer, folder / "model")


def write_folder(model: nn.Module, tokenizer: Any, folder: Path) -> None:
    """Write the model of a run's best checkpoint, in place of what an earlier end of the same run has left there."""
    part = folder.parent / f".{folder.name}.{os.getpid()}.part"  # a folder that is there is whole
    try:
        if isinstance(model, ScalarModel):
            save_scalar(model, tokenizer, part)
        else:
            save_model(model, tokenizer, part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    kind = "ForSequenceClassification" if isinstance(model, ScalarModel) else "ForCausalLM"
    print(f"the model of its best checkpoint: {folder}; AutoModel{kind} of transformers loads it")


def fit(command: str, parallel: Parallel, arguments: Sequence[str]) -> int:
    """Train, as one of the ranks that `parallel` counts; the exit code."""
    quiet()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)
    torch.set_float32_matmul_precision("high")
    module, data = KINDS[command]
    defaults = {**TRAINER, **(ROUNDS if data is PromptsDataModule else {})}
    options: dict[str, Any] = {
        "args": ["fit", *arguments], "seed_everything_default": 0, "auto_configure_optimizers": False,
        "save_config_callback": SaveConfigCallback, "save_config_kwargs": {"overwrite": True},
        "parser_kwargs": {"exit_on_error": False}, "trainer_defaults": defaults,
    }  # fmt: skip
    if command == "sft":
        SFTCLI(parallel, module, data, **options)
    else:
        AlignCLI(command, parallel, module, data, **options)
    return 0
