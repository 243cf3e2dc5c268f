"""BabyGPT, aligned on a reward that is a program: what it begins must be Python with a body, and end."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from llm_align.data.records import prompt_of
from llm_align.evaluate.intervals import paired_bootstrap
from llm_align.evaluate.retention import abilities, retention
from llm_align.rollout.write import Writer
from llm_align.tasks import functions
from llm_core.generate import Sampling
from llm_core.store.registry import load_model
from llm_peft.tasks.other_text import other_texts

from course import check
from llm_ops.way.data import PER_ROUND, read_prompts
from llm_ops.way.programs import run as run_program
from llm_ops.way.settings import CONTEXT
from llm_ops.way.stage import Made, Place
from llm_ops.way.train import scalars

REWARD, MOST_NEW = "llm_align.tasks.functions:reward_with_body", 60
GROUP = 8
TOO_FEW = "the quick way has too few steps, questions and rounds to tell this from chance"


def run(place: Place) -> Made:
    """The stage."""
    folder, settings = place.folder("align"), place.settings
    base = place.folder("train") / "model"
    lines = (place.folder("data") / "prompts.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "val.jsonl").write_text("".join(lines[:PER_ROUND]), "utf-8")
    (folder / "train.jsonl").write_text("".join(lines[PER_ROUND:]), "utf-8")
    shutil.rmtree(folder / "run" / "model", ignore_errors=True)
    fitted = run_program(
        place.root, "align", "grpo",
        seed_everything=settings.seed, run__folder=folder / "run", run__checkpoint_every=2, ckpt_path="last",
        model__base=base, model__reward=REWARD, model__fine_tune__method="full", model__learning_rate=1e-3,
        model__warmup_steps=min(2, settings.align_steps // 2), model__policy__group=GROUP,
        model__policy__max_new_tokens=MOST_NEW, model__policy__unfinished_reward=0.0,
        data__seed=settings.seed, data__train=folder / "train.jsonl", data__val=folder / "val.jsonl",
        data__context=CONTEXT,
        data__prompts_per_round=PER_ROUND, data__batch_size=32, trainer__accumulate_grad_batches=2,
        trainer__max_steps=settings.align_steps, trainer__val_check_interval=settings.align_steps,
    )  # fmt: skip
    before, after = (judged(each, read_prompts(place)) for each in (base, folder / "run" / "model"))
    gain = paired_bootstrap(before["body"], after["body"])
    check.when(settings.learns, TOO_FEW).holds("more held-out answers have a body", gain.low > 0, f"gain {gain}")
    kept = _kept(base, folder / "run" / "model", before, after)
    facts = {
        "steps": settings.align_steps, "before": _means(before), "after": _means(after), "forgot": kept,
        "answers": [before["text"], after["text"]],
    }  # fmt: skip
    curves = {name: scalars(folder / "run", f"train_{name}") for name in ("reward", "length")}
    return Made(("run/model",), facts, (fitted,), {"curves": curves})


def judged(folder: Any, prompts: list[str]) -> dict[str, Any]:
    """An answer to each prompt, drawn at temperature 1 with the same seeds, and what two programs say of it."""
    model, tokenizer = load_model(folder)
    assert tokenizer is not None
    asked = [prompt_of({"prompt": each}, tokenizer) for each in prompts]
    rollout = Writer(model, tokenizer, Sampling(MOST_NEW, 1.0), group=1).write(asked, seed=10**6)  # type: ignore[arg-type]
    pairs = [(each.text, text) for each, text in zip(rollout.prompts, rollout.texts, strict=True)]
    ended = rollout.finished.tolist()
    return {
        "parses": [functions.reward(*pair) for pair in pairs],
        "body": [functions.reward_with_body(*pair) * end for pair, end in zip(pairs, ended, strict=True)],
        "ended": [float(end) for end in ended], "tokens": [float(each) for each in rollout.tokens],
        "text": pairs[0][0] + pairs[0][1],
    }  # fmt: skip


def _means(found: dict[str, Any]) -> dict[str, float]:
    return {name: sum(found[name]) / len(found[name]) for name in ("parses", "body", "ended", "tokens")}


@torch.no_grad()
def _kept(base: Any, aligned: Any, before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """Bits per byte of two texts that were lost by aligning."""
    found = []
    for folder, said in ((base, before), (aligned, after)):
        model, tokenizer = load_model(folder)
        found.append(abilities(model, other_texts(tokenizer, rows=12, time=CONTEXT), said["parses"]))
    old, new = found
    return {name: change.difference for name, change in retention(old, new).bits.items()}
