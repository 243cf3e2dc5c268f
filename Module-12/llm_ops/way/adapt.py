"""smollm2-135m, a real pretrained model, adapted to a task of ours by LoRA."""

from __future__ import annotations

import json
import shutil
from typing import Any

from llm_align.evaluate.intervals import wilson
from llm_core.generate import Sampling, generate, stop_ids
from llm_core.store.registry import load_model
from llm_peft.budget import budget
from llm_peft.chat.template import prompt_ids
from llm_peft.lora.config import LoRAConfig
from llm_peft.settings import FineTune
from llm_peft.tasks.signatures import Signature, score
from safetensors.torch import load_file

from course import check
from llm_ops.way.align import TOO_FEW
from llm_ops.way.data import asked_signatures
from llm_ops.way.programs import run as run_program
from llm_ops.way.stage import Made, Place
from llm_ops.way.train import scalars

NAME, CONTEXT, RANK, ALPHA = "smollm2-135m", 256, 16, 32
MOST_NEW = 60


def run(place: Place) -> Made:
    """The stage."""
    folder, settings, data = place.folder("adapt"), place.settings, place.folder("data")
    shutil.rmtree(folder / "run" / "adapter", ignore_errors=True)
    fitted = run_program(
        place.root, "local-lora", "fit",
        seed_everything=settings.seed, run__folder=folder / "run", run__checkpoint_every=4, ckpt_path="last",
        model__base=NAME, model__fine_tune__library="ours", model__fine_tune__lora__r=RANK,
        model__fine_tune__lora__lora_alpha=ALPHA, model__learning_rate=1e-3,
        model__warmup_steps=settings.adapt_steps // 8, data__seed=settings.seed, data__train=data / "sft.jsonl",
        data__val=data / "sft_val.jsonl", data__context=CONTEXT, data__batch_size=1,
        trainer__max_steps=settings.adapt_steps, trainer__val_check_interval=settings.adapt_steps,
        trainer__log_every_n_steps=1,
    )  # fmt: skip
    shutil.rmtree(folder / "model", ignore_errors=True)
    merged = run_program(place.root, "local-lora", "merge", folder / "run", folder / "model")
    trained = sum(each.numel() for each in load_file(folder / "run" / "adapter" / "adapter_model.safetensors").values())
    settings_of = FineTune(lora=LoRAConfig(r=RANK, lora_alpha=ALPHA), dtype="float32", library="ours")
    predicted = budget(_config(folder), settings_of, 1, CONTEXT).trained_parameters
    check.equal("numbers of the adapter, in its file and by the formula", trained, predicted)
    asked = asked_signatures(place)
    right = {name: _right(model, asked) for name, model in (("before", NAME), ("after", folder / "model"))}
    before, after = (wilson(right[name], len(asked)) for name in ("before", "after"))
    check.when(settings.learns, TOO_FEW).holds(
        "held-out answers right, beyond both intervals", after.low > before.high, f"{before} before, {after} after"
    )
    facts = {
        "steps": settings.adapt_steps, "asked": len(asked), "right": right, "trained_parameters": trained,
    }  # fmt: skip
    curves = {name: scalars(folder / "run", name) for name in ("train_loss", "val_loss")}
    # Not the adapter, which nobody reads after this: safetensors writes the two metadata of its file in any order.
    return Made(("model",), facts, (fitted, merged), {"curves": curves})


def _config(folder: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(**json.loads((folder / "model" / "config.json").read_text("utf-8")))


def _right(name: Any, asked: list[Signature]) -> int:
    """How many questions a model answers to the letter, greedily."""
    model, tokenizer = load_model(name)
    assert tokenizer is not None
    ends = tuple(sorted({*stop_ids(model), int(tokenizer.eos_token_id)}))
    prompts = [prompt_ids(each.question, tokenizer) for each in asked]
    rows = generate(model, prompts, Sampling(MOST_NEW, 0.0, stop_ids=ends), ends[0])  # type: ignore[arg-type]
    said = [(str(tokenizer.decode(row, skip_special_tokens=True)).strip(), row[-1] in ends) for row in rows]
    return round(score(said, asked).right * len(asked))
