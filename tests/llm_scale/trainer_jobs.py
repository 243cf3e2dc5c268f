"""What the tests of the trainer run on each rank."""

import os
import random
import signal
from dataclasses import asdict

import pytorch_lightning as pl
import torch.distributed as dist
from llm_core.model import GPT, GPTConfig
from llm_data.datamodule import LLMDataModule
from llm_data.text.corpora import load_corpus
from llm_scale.trainer.checks import make_shares
from llm_scale.trainer.model import ParallelGPT
from llm_scale.trainer.settings import Parallel
from llm_scale.trainer.strategies import trainer_options
from llm_scale.trainer.train import EndedAtOnce, LossLog, StepCheckpoints
from pytorch_lightning.strategies import ModelParallelStrategy
from transformers import LlamaConfig, LlamaForCausalLM

from course.lightning_tools import quiet

ROWS, STEPS, CLIP = 8, 10, 0.5  # rows of a step over all ranks


def write_text(folder):
    """300 short paragraphs: more rows of 32 tokens than ten steps of 8 take."""
    draw = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    paragraphs = {" ".join(draw.choice(words) for _ in range(draw.randint(3, 30))) for _ in range(300)}
    path = folder / "own.txt"
    path.write_text("\n\n".join(sorted(paragraphs)))
    return path


def data_of(folder, batch_size=ROWS):
    """Rows with other numbers of targets each; `prepare_data` was called in this folder by the test's process."""
    corpus = load_corpus(f"text:{folder / 'own.txt'}", val_percent=10, test_percent=10)
    return LLMDataModule(corpus, "bpe-300", context=32, batch_size=batch_size, cache=folder / "cache", progress=False)


class Calls(pl.Callback):
    """How often the first block's attention is computed, and what SIGTERM does meanwhile."""

    def __init__(self):
        self.number, self.sigterm = 0, None

    def on_train_start(self, trainer, pl_module):
        pl_module.model.model.layers[0].self_attn.register_forward_hook(self._count)

    def _count(self, *_):
        self.number += 1
        self.sigterm = signal.getsignal(signal.SIGTERM)


def train(
    folder, strategy="single", devices=1, precision="32-true", checkpointing=False, accumulate=1, clip=CLIP,
    loss_chunk=0, dropout=0.0, steps=STEPS, keep=None, resume=None, seed=0, width=32, lightnings=None, heads=4,
    llama=False, clipped_by=None, zero_stage=3,
):  # fmt: skip
    """A run; the losses and norms of its steps, each rank's shares, and calls of an attention. An error's words in
    their place, so that the ranks live on.

    Args:
        keep: folder of its checkpoints, one every five steps.
        resume: checkpoint that it goes on from.
        seed: of the first weights; a list has one for each rank.
        llama: whether the model is transformers' own class.
        lightnings: the strategy that Lightning would be given instead.
    """
    quiet()
    parallel = Parallel(
        strategy, devices, accelerator="cpu", precision=precision, activation_checkpointing=checkpointing,
        zero_stage=zero_stage,
    )  # fmt: skip
    data = data_of(folder, ROWS // parallel.data_ranks // accumulate)
    pl.seed_everything(seed[dist.get_rank()] if isinstance(seed, list) else seed, verbose=False)
    config = GPTConfig(300, width, num_hidden_layers=2, num_attention_heads=heads, num_key_value_heads=heads // 2,
                       max_position_embeddings=32, attention_dropout=dropout)  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**asdict(config))) if llama else GPT(config)
    module = ParallelGPT(model, learning_rate=1e-2, warmup_steps=2, loss_chunk=loss_chunk)
    module.parallel = parallel
    log, shares, calls = LossLog(), make_shares(parallel), Calls()
    callbacks = [shares, log, EndedAtOnce(), calls, *([StepCheckpoints(keep, 5)] if keep else [])]
    options = trainer_options(parallel)
    if lightnings is not None:
        options["strategy"] = lightnings()
    trainer = pl.Trainer(
        max_steps=steps, accumulate_grad_batches=accumulate, gradient_clip_val=clip, logger=False,
        gradient_clip_algorithm=clipped_by,
        enable_checkpointing=bool(keep), enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=callbacks, **options,
    )  # fmt: skip
    try:
        trainer.fit(module, data, ckpt_path=resume)
    except ValueError as error:
        return str(error)
    return {
        "losses": [line["loss"] for line in log.lines], "norms": [line["grad_norm"] for line in log.lines],
        "steps": [line["step"] for line in log.lines], "weights": shares.weights, "states": shares.states,
        "calls": calls.number, "ended_at_once": calls.sigterm is signal.SIG_DFL,
    }  # fmt: skip


def train_with_lightnings_defaults(folder):
    """`ModelParallelStrategy()` as its documentation begins."""
    return train(folder, "fsdp", 2, lightnings=ModelParallelStrategy)


class AtStep(pl.Callback):
    """Kills one rank before a step."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == self.rank and trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)
