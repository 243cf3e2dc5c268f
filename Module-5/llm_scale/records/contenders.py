"""The ways of training on ranks that a race compares: torch's own, ours by hand, DeepSpeed's, and ours under Lightning.

All train one model from the same weights on the same batches, with a fused AdamW and gradients clipped at a norm of 1.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from llm_core.model import GPT
from llm_core.optimizers import parameter_groups
from torch import Tensor, nn

from llm_scale.budget import BUCKET, PRECISIONS, Setup, block_parameters, budget
from llm_scale.deepspeed_tools import make_engine, why_not
from llm_scale.records.task import Task
from llm_scale.records.watch import Watch

CLIP = 1.0
ADAMW: dict[str, Any] = {"lr": 3e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True}
Step = Callable[[], Any]


def looped(task: Task, model: Any, update: Step, backward: Callable[[Tensor], Any] = Tensor.backward) -> Step:
    """A step of a bare loop: forward pass, backward pass, then what clips, steps and clears."""
    batches, position = task.batches(), 0

    def step() -> Tensor:
        nonlocal position
        ids = batches[position % len(batches)]
        position += 1
        loss = task.mean_loss(model, ids)
        backward(loss)
        update()
        return loss.detach()

    weakref.finalize(step, forget_hooks, list(model.parameters()))
    return step


def forget_hooks(parameters: list[nn.Parameter]) -> None:
    """Take off the hooks that wait for gradients. They hold what holds the parameters, in a circle that Python's
    collector does not see: each turn's model would stay."""
    for parameter in parameters:
        hooks: Any = parameter._post_accumulate_grad_hooks
        if hooks:
            hooks.clear()


def torchs(task: Task, model: nn.Module, before: Step = lambda: None) -> Step:
    """A step with torch's AdamW over the model's own parameters; `before` comes between backward pass and clipping."""
    options = {**ADAMW, "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(parameter_groups(model, ADAMW["weight_decay"]), **options)

    def update() -> None:
        before()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return looped(task, model, update)


def ddp(task: Task) -> Step:
    """torch's `DistributedDataParallel`."""
    places = [torch.cuda.current_device()] if task.device == "cuda" else None
    return torchs(task, nn.parallel.DistributedDataParallel(task.build_model(), device_ids=places))


def fsdp2(task: Task, reshard: bool = True) -> Step:
    """torch's `fully_shard` on each block and on the whole.

    Args:
        task: what is trained.
        reshard: let the whole weights of a block go after its forward pass, and gather them again for its backward.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model, options = task.build_model(), dict[str, Any]()
    if task.precision == "bf16-master":
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    for block in model.model.layers:
        fully_shard(block, reshard_after_forward=reshard, **options)
    fully_shard(model, reshard_after_forward=reshard, **options)
    return torchs(task, model)


def ours_ddp(task: Task) -> Step:
    """`llm_scale.DataParallel`: gradients in buckets."""
    from llm_scale.parallel.ddp import DataParallel

    model = task.build_model()
    return torchs(task, model, DataParallel(model).finish)


def ours_zero(task: Task, stage: int) -> Step:
    """`llm_scale`'s stages of ZeRO."""
    from llm_scale.parallel.zero1 import Zero1
    from llm_scale.parallel.zero2 import Zero2
    from llm_scale.parallel.zero3 import Zero3, blocks_of

    model = task.build_model()
    make: dict[int, Callable[[], Any]] = {
        1: lambda: Zero1(model, torch.optim.AdamW, **ADAMW),
        2: lambda: Zero2(model, torch.optim.AdamW, **ADAMW),
        3: lambda: Zero3(model, blocks_of(model), torch.optim.AdamW, **ADAMW),
    }
    runner = make[stage]()

    def update() -> None:
        if isinstance(runner, Zero1):
            runner.reduce()
        runner.clip_grad_norm_(CLIP)
        runner.step()

    return looped(task, model, update)


def deepspeeds(task: Task, stage: int) -> Step:
    """DeepSpeed's stages of ZeRO, around torch's AdamW."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": task.rows, "gradient_clipping": CLIP, "zero_allow_untested_optimizer": True,
        # Messages as large as DDP's: the default of 500 million numbers takes 2 GB of a rank, however small the model.
        "zero_optimization": {"stage": stage, "reduce_bucket_size": BUCKET // 4, "allgather_bucket_size": BUCKET // 4},
    }  # fmt: skip
    if task.precision == "bf16-mixed":
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    model = task.build_model()
    engine = make_engine(model, torch.optim.AdamW(model.parameters(), **ADAMW), config)
    step = looped(task, engine, engine.step, engine.backward)
    weakref.finalize(step, engine.destroy)  # its hooks would keep the model of this turn for all others
    return step


def trainer(task: Task, watch: Watch) -> None:
    """The same FSDP2 through `llm_scale.trainer`: what `llm-scale fit --strategy fsdp` runs under Lightning."""
    import pytorch_lightning as pl

    from course.lightning_tools import quiet
    from llm_scale.trainer.checks import Shares
    from llm_scale.trainer.model import ParallelGPT
    from llm_scale.trainer.settings import Parallel
    from llm_scale.trainer.strategies import trainer_options
    from llm_scale.trainer.train import LossLog

    class Done(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            watch.step_done()

    quiet()
    parallel = Parallel(
        "fsdp", dist.get_world_size(), accelerator="gpu" if task.device == "cuda" else "cpu",
        precision={"fp32": "32-true"}.get(task.precision, task.precision), activation_checkpointing=task.checkpointing,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(task.device):
        model = GPT(task.config)
    module = ParallelGPT(model, learning_rate=ADAMW["lr"], warmup_steps=1, weight_decay=ADAMW["weight_decay"])
    module.parallel = parallel
    batches: Any = [{"input_ids": ids, "labels": ids} for ids in task.batches()]
    loader: Any = torch.utils.data.DataLoader(batches * -(-watch.total // len(batches)), batch_size=None)
    pl.Trainer(
        max_steps=watch.total, gradient_clip_val=CLIP, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
        callbacks=[Shares(parallel), LossLog(), Done()], **trainer_options(parallel),
    ).fit(module, loader)  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """A way of training.

    Attributes:
        train: trains anew, and says to the watch when a step is done.
        strategy: its name in `budget.STRATEGIES`, for its predicted bytes; DeepSpeed's, whose copies are not counted
            there, have none.
        whole: whether a block's weights stay whole between its forward and its backward pass, against that strategy.
    """

    train: Callable[[Task, Watch], None]
    strategy: str = ""
    whole: bool = False

    def missing(self, task: Task) -> str:
        """Why it cannot run here; empty where it can."""
        if not self.strategy and why_not():
            return why_not()
        if task.precision == "bf16-master" and (self.strategy != "fsdp" or self.train is trainer):
            return "bf16-master is a policy of fully_shard; take bf16-mixed"
        return ""

    def predicted(self, task: Task, ranks: int) -> int | None:
        """Bytes of a rank at the highest moment of a step; None where they are not known."""
        if not self.strategy:
            return None
        setup = Setup(self.strategy, ranks, task.precision, checkpointing=task.checkpointing)
        found = budget(task.config, setup, task.rows, task.time)
        if not self.whole:
            return found.bytes
        # Two blocks are counted already, and before the last reductions the others are let go of.
        others = (task.config.num_hidden_layers - 2) * PRECISIONS[task.precision][3] * block_parameters(task.config)
        late = ("last reductions", "backward end", "optimiser")
        return max(value + others * (name not in late) for name, value in found.moments.items())


def built(build: Callable[..., Step], *arguments: Any) -> Callable[[Task, Watch], None]:
    """A way of training from what builds a step."""

    def train(task: Task, watch: Watch) -> None:
        step = build(task, *arguments)
        for _ in range(watch.total):
            step()
            watch.step_done()

    return train


# In the order of a round: what is compared most closely stands side by side.
CONTENDERS: dict[str, Contender] = {
    "fsdp2": Contender(built(fsdp2), "fsdp"),
    "fsdp2-lightning": Contender(trainer, "fsdp"),
    "fsdp2-no-reshard": Contender(built(fsdp2, False), "fsdp", whole=True),
    "ddp": Contender(built(ddp), "ddp"),
    "ours-ddp": Contender(built(ours_ddp), "ddp"),
    "ours-zero1": Contender(built(ours_zero, 1), "zero1"),
    "ours-zero2": Contender(built(ours_zero, 2), "zero2"),
    "ours-zero3": Contender(built(ours_zero, 3), "fsdp"),
    **{f"deepspeed-zero{stage}": Contender(built(deepspeeds, stage)) for stage in (1, 2, 3)},
}
