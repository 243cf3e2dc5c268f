"""What the tests of training run, alone or as one of several ranks."""

from __future__ import annotations

from typing import Any

import torch


def by_length(prompt: str, answer: str) -> float:
    """A reward that any answer can have, and that differs between answers."""
    return len(answer) % 7 / 7


def module_of(kind: str, base: str, method: str = "full", reward: Any = by_length, **changes: Any) -> Any:
    from llm_align.models.load import prepare_policy, prepare_scalar
    from llm_align.rollout.reward import FunctionReward
    from llm_align.training.pairs import DPOModule, Preference, RewardModule
    from llm_align.training.policy import GRPOModule, PolicySettings
    from llm_align.training.ppo import PPOModule, ValueSettings
    from llm_peft.lora.config import LoRAConfig
    from llm_peft.settings import FineTune

    torch.manual_seed(0)
    settings = FineTune(method=method, library="ours", dtype="float32", lora=LoRAConfig(r=4, lora_alpha=8))
    options = {"learning_rate": 3e-3, "warmup_steps": 0}
    if kind == "reward":
        return RewardModule(prepare_scalar(base, settings), settings, **options)
    policy = prepare_policy(base, settings)
    if kind == "dpo":
        return DPOModule(policy, settings, Preference(**changes), **options)
    chosen = {"max_new_tokens": 8, **changes}
    if kind == "grpo":
        return GRPOModule(policy, settings, FunctionReward(reward), PolicySettings(group=4, **chosen), **options)
    critic = prepare_scalar(base, settings)
    asked = PolicySettings(group=1, normaliser="tokens", **chosen)
    return PPOModule(policy, settings, FunctionReward(reward), critic, asked, ValueSettings(target_kl=2.0), **options)


def data_of(kind: str, files: str, batch_size: int, **options: Any) -> Any:
    from llm_align.data.pairs import PairsDataModule
    from llm_align.data.prompts import PromptsDataModule

    if kind in ("dpo", "reward"):
        return PairsDataModule(f"{files}/pairs.jsonl", context=64, batch_size=batch_size, val_percent=15, **options)
    sizes = {"prompts_per_round": 4 if kind == "grpo" else 16, **options}
    return PromptsDataModule(f"{files}/prompts.jsonl", context=64, batch_size=batch_size, val_percent=15, **sizes)


def train(
    kind: str, base: str, files: str, batch_size: int, steps: int, ranks: int = 1, save: str = "", resume: str = "",
    method: str = "full", data: dict[str, Any] | None = None, changes: dict[str, Any] | None = None, **trainer: Any,
) -> dict[str, Any]:  # fmt: skip
    """Losses of each step, and what is trained; a run of 8 steps that ends after `steps`."""
    import pytorch_lightning as pl
    from llm_core.forgetting import SILENT
    from llm_peft.prepare import trained_state
    from pytorch_lightning.strategies import DDPStrategy

    from course.lightning_tools import quiet

    quiet()
    losses: list[float] = []

    class Seen(pl.Callback):
        def __init__(self) -> None:
            self.before: int | None = None

        def on_train_start(self, trainer: Any, *_: Any) -> None:
            self.before = trainer.global_step

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step > self.before:
                self.before = trainer.global_step
                losses.append(pl_module.step_loss)
            if trainer.global_step == steps and not trainer.should_stop:
                if save:
                    trainer.save_checkpoint(save)
                trainer.should_stop = True

    module, rows = module_of(kind, base, method, **(changes or {})), data_of(kind, files, batch_size, **(data or {}))
    rows.tokenizer = module.prepared.tokenizer
    options: dict[str, Any] = {"devices": 1}
    if ranks > 1:
        options = {"devices": ranks, "strategy": DDPStrategy(process_group_backend="gloo")}
    options |= {"max_steps": 8, "max_epochs": -1, "limit_val_batches": 0, "accelerator": "cpu", "log_every_n_steps": 1}
    made = pl.Trainer(**{**SILENT, **options, "gradient_clip_val": 1.0, **trainer, "callbacks": [Seen()]})
    made.fit(module, rows, ckpt_path=resume or None)
    state = {name: values.clone() for name, values in trained_state(module.model).items()}
    return {"losses": losses, "state": state, "history": module.history}
