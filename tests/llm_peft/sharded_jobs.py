"""What the ranks of `test_sharded` run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def train(
    base: str, examples: str, method: str, batch_size: int, steps: int, ranks: int, save: str = "", resume: str = "",
    library: str = "peft",
    **trainer: Any,
) -> dict[str, Any]:  # fmt: skip
    """Losses of each step, and what is trained, whole; with one rank in this process alone."""
    import pytorch_lightning as pl
    from llm_core.forgetting import SILENT
    from llm_peft.chat.datamodule import ChatDataModule
    from llm_peft.local_lora import LocalLoRA
    from llm_peft.lora.config import LoRAConfig
    from llm_peft.prepare import gathered, prepare, trained_state
    from llm_peft.settings import FineTune
    from llm_peft.sharded import FullyShardAdapter, here

    from course.lightning_tools import quiet

    quiet()
    losses: list[float] = []
    start = 0

    class Seen(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step > start + len(losses):  # inside a step nothing is known yet
                losses.append(pl_module.step_loss)

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            nonlocal start
            start = trainer.global_step

    settings = FineTune(method=method, lora=LoRAConfig(r=4, lora_alpha=8), library=library, dtype="float32")
    torch.manual_seed(0)
    module = LocalLoRA(prepare(base, settings), settings, learning_rate=1e-3, warmup_steps=0)
    data = ChatDataModule(examples, context=128, batch_size=batch_size)
    data.tokenizer = module.prepared.tokenizer
    options: dict[str, Any] = {"devices": 1}
    if ranks > 1:
        options = {"devices": ranks, "strategy": FullyShardAdapter(ranks)}
    options |= {"max_steps": 8, "limit_val_batches": 0, "gradient_clip_val": 0.05, "accelerator": "cpu", **trainer}
    made = pl.Trainer(**{**SILENT, **options, "callbacks": [Seen(), Stop(steps, save)]})
    made.fit(module, data, ckpt_path=resume or None)
    held = sum(here(each).numel() for each in module.model.parameters())
    state = gathered(trained_state(module.model))
    return {"losses": losses, "state": state, "held": held}


def Stop(step: int, save: str) -> Any:
    import pytorch_lightning as pl

    class Stopper(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == step:
                if save:
                    trainer.save_checkpoint(Path(save))
                trainer.should_stop = True

    return Stopper()
