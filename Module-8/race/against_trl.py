"""Our DPO and GRPO beside trl's, the same model, pairs and prompts, in turns.

`uv run python Module-8/race/against_trl.py --record docs/results/align_race.json` prints seconds a step, what ours is
over theirs, the bytes at the peak beside what is held, and the largest difference of their losses.

A step of DPO is the forward passes of policy and reference, the backward pass and AdamW. A step of GRPO writes its
answers too: ours by Module 7's engine, trl's by transformers' `generate`. Weights are drawn, so that no answer ends
early and both write as many tokens; the losses are compared on the same answers, which each learns from in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from llm_align.data.pairs import PairRows, pair_batch
from llm_align.data.records import pair_of, prompt_of
from llm_align.models.load import prepare_policy
from llm_align.rollout.reward import FunctionReward
from llm_align.tasks.named import named
from llm_align.training.pairs import DPOModule
from llm_align.training.policy import GRPOModule, PolicySettings
from llm_core.costs.memory import memory_curve
from llm_core.store.hf import pretrained
from llm_core.store.registry import load_model
from llm_peft.settings import FineTune
from llm_precision.meters import Seconds, interleaved
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from course import scale
from course.files import write_text

SIZES = {
    "2M": {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4},
    "18M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4},
    "33M": {"hidden_size": 384, "intermediate_size": 1_024, "num_hidden_layers": 8, "num_attention_heads": 6},
}
FULL, RATE = FineTune(method="full"), 1e-5
# A step of AdamW is the rate times a sign where a gradient is larger than this, which must not be decided by rounding:
# most of 49,152 rows of a vocabulary have a gradient of 1e-8 and less.
EPSILON = 1e-6
Step = Callable[[], float]
Steps = Callable[[], dict[str, Step]]


def base_of(size: str, folder: Path) -> Path:
    """A Llama of that size with the tokenizer and the template of smollm2-135m, as a folder."""
    _, tokenizer = load_model("smollm2-135m")
    assert tokenizer is not None
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(**SIZES[size], vocab_size=len(tokenizer), tie_word_embeddings=True))
    made.generation_config.eos_token_id = made.config.eos_token_id = int(tokenizer.eos_token_id)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def optimised(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    """A whole step: loss, gradients, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, eps=EPSILON, weight_decay=0.0, fused=True)

    def step() -> float:
        value = loss()
        optimizer.step()
        optimizer.zero_grad()
        return float(value.detach())

    return step


def mean(module: Any, batch: Any) -> torch.Tensor:
    """Our loss with its gradients."""
    total, count = module.loss(batch)
    loss: torch.Tensor = total / count
    loss.backward()
    return loss


def trl_options(folder: Path, **options: Any) -> dict[str, Any]:
    """What both of trl's trainers are told: no 16 bits, no recomputing, which are its defaults."""
    return {
        "output_dir": str(folder), "bf16": False, "gradient_checkpointing": False, "report_to": "none",
        "use_cpu": True, "learning_rate": RATE, "disable_tqdm": True, "save_strategy": "no", **options,
    }  # fmt: skip


def dpo(base: Path, pairs: int) -> dict[str, Step]:
    """A step of each on the same pairs."""
    from trl import DPOConfig, DPOTrainer

    questions = named("arithmetic").questions(pairs, 0)
    module = DPOModule(prepare_policy(str(base), FULL), FULL)
    tokenizer: Any = module.prepared.tokenizer
    # Plain prompts: of a chat trl also learns the line break that the template writes behind an answer's end.
    records = [
        {"prompt": each.text + "\n", "chosen": each.answer, "rejected": each.wrong} for each in questions
    ]  # fmt: skip
    rows = PairRows([pair_of(record, tokenizer) for record in records], tokenizer.pad_token_id or 0)
    batch = pair_batch(rows, np.arange(pairs))
    theirs = pretrained(AutoModelForCausalLM, base, dtype=torch.float32)
    data = datasets.Dataset.from_list(records)
    config = DPOConfig(**trl_options(base, beta=0.1, per_device_train_batch_size=pairs, max_length=512))
    trainer = DPOTrainer(theirs, args=config, train_dataset=data, processing_class=tokenizer)
    (inputs,) = list(trainer.get_train_dataloader())
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # which its loop would set
    return {
        "ours": optimised(module.model, lambda: mean(module, batch)),
        "trl": optimised(trainer.model, lambda: trainer.training_step(trainer.model, inputs)),
    }  # fmt: skip


def by_length(prompt: str, answer: str) -> float:
    """A reward that differs from answer to answer."""
    return len(answer) % 7 / 7


def grpo(base: Path, prompts: int, group: int, tokens: int) -> dict[str, Step]:
    """A step of each, answers included."""
    module, records = grpo_module(base, prompts, group, tokens)
    asked = [prompt_of(record, module.prepared.tokenizer) for record in records]
    trainer = trl_grpo(base, records, group, tokens)
    inputs = [{"prompt": record["messages"]} for record in records for _ in range(group)]
    seeds = iter(range(10**9))

    def ours() -> torch.Tensor:
        return mean(module, module.make_round(asked, [next(seeds) * group for _ in asked]))

    return {
        "ours": optimised(module.model, ours),
        "trl": optimised(trainer.model, lambda: trainer.training_step(trainer.model, inputs, None)),
    }  # fmt: skip


def grpo_learning(base: Path, prompts: int, group: int, tokens: int) -> dict[str, Step]:
    """A step of each on the same answers, again and again."""
    module, records = grpo_module(base, prompts, group, tokens)
    asked = [prompt_of(record, module.prepared.tokenizer) for record in records]
    rows = module.make_round(asked, [place * group for place in range(prompts)])
    trainer = trl_grpo(base, records, group, tokens)
    first, last = rows["prompt_lengths"].tolist(), rows["lengths"].tolist()
    widest = max(first)
    left = [[0] * (widest - n) + ids[:n].tolist() for ids, n in zip(rows["input_ids"], first, strict=True)]
    answers = [ids[a:b].tolist() + [0] * (tokens - b + a) for ids, a, b in
               zip(rows["input_ids"], first, last, strict=True)]  # fmt: skip
    mask = torch.tensor([[1] * (b - a) + [0] * (tokens - b + a) for a, b in zip(first, last, strict=True)])
    old = torch.stack([
        torch.nn.functional.pad(each[a - 1 : b - 1], (0, tokens - b + a))
        for each, a, b in zip(rows["old"], first, last, strict=True)
    ])  # fmt: skip
    inputs = {
        "prompt_ids": torch.tensor(left), "completion_ids": torch.tensor(answers), "completion_mask": mask,
        "prompt_mask": torch.tensor([[0] * (widest - n) + [1] * n for n in first]), "advantages": rows["advantages"],
        "old_per_token_logps": old, "num_items_in_batch": mask.sum(),
    }  # fmt: skip

    def theirs() -> torch.Tensor:
        loss: torch.Tensor = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        return loss

    return {"ours": optimised(module.model, lambda: mean(module, rows)), "trl": optimised(trainer.model, theirs)}


def grpo_module(base: Path, prompts: int, group: int, tokens: int) -> tuple[GRPOModule, list[dict[str, Any]]]:
    """Ours, with prompts."""
    settings = PolicySettings(group=group, max_new_tokens=tokens, measure_kl=False)
    module = GRPOModule(prepare_policy(str(base), FULL), FULL, FunctionReward(by_length), settings)
    questions = named("arithmetic").questions(prompts, 0)
    return module, [{"messages": list(each.messages)} for each in questions]


def trl_grpo(base: Path, records: list[dict[str, Any]], group: int, tokens: int) -> Any:
    """trl's trainer on the same prompts."""
    from trl import GRPOConfig, GRPOTrainer

    def reward(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [by_length("", completion[0]["content"]) for completion in completions]

    config = GRPOConfig(
        **trl_options(
            base, per_device_train_batch_size=len(records) * group, num_generations=group,
            max_completion_length=tokens, loss_type="grpo", beta=0.0, temperature=1.0,
        )
    )  # fmt: skip
    _, tokenizer = load_model(base)
    data = datasets.Dataset.from_list([{"prompt": record["messages"]} for record in records])
    model = pretrained(AutoModelForCausalLM, base, dtype=torch.float32)
    trainer = GRPOTrainer(model, reward_funcs=reward, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # which its loop would set
    return trainer


def race(made: Steps, rounds: int, curve: Steps | None, steps: int) -> Any:
    """Both in turns; what each took, its peak, and how far the losses are apart over `steps` steps."""
    found = made()
    peaks = {name: max(memory_curve(step).held) for name, step in found.items()}
    times = interleaved(found, rounds=rounds, warmup=1)
    ratios = [ours / theirs for ours, theirs in zip(times["ours"], times["trl"], strict=True)]
    losses = {name: [step() for _ in range(steps)] for name, step in (curve or made)().items()}
    return {
        "seconds": {name: statistics.median(values) for name, values in times.items()}, "all_seconds": times,
        "ours_over_trl": Seconds.of(ratios)._asdict(), "peak_beside_held": peaks, "losses": losses,
        "largest_difference": max(abs(a - b) for a, b in zip(losses["ours"], losses["trl"], strict=True)),
    }  # fmt: skip


def main() -> None:
    """Parse, race, print, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="18M")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24, help="of each answer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="of the loss curves")
    parser.add_argument("--record", type=Path, help="append what was measured to this JSON file")
    options = parser.parse_args()
    for name in ("pairs", "prompts", "rounds", "steps", "tokens"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        base, sizes = base_of(options.size, Path(folder)), (options.prompts, options.group, options.tokens)
        for name, made, curve in (
            ("dpo", lambda: dpo(base, options.pairs), None),
            ("grpo", lambda: grpo(base, *sizes), lambda: grpo_learning(base, *sizes)),
            ("grpo, learning alone", lambda: grpo_learning(base, *sizes), None),
        ):
            row = rows[name] = race(made, options.rounds, curve, options.steps)
            ratio, peaks = row["ours_over_trl"], row["peak_beside_held"]
            told = ", ".join(f"{each} {peak / 2**20:.0f} MiB" for each, peak in peaks.items())
            print(
                f"{name}: ours {row['seconds']['ours']:.3f} s, trl {row['seconds']['trl']:.3f} s a step, ours over trl "
                f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}); beside what is held {told}; "
                f"losses within {row['largest_difference']:.1e}",
                flush=True,
            )
    if options.record:
        old = json.loads(options.record.read_text("utf-8")) if options.record.is_file() else []
        import trl

        head = {
            "date": date.today().isoformat(), "hardware": scale.hardware, "torch": torch.__version__,
            "trl": trl.__version__,
            "command": f"Module-8/race/against_trl.py --size {options.size} --record {options.record}",
        }  # fmt: skip
        write_text(options.record, json.dumps([*old, {**head, "rows": rows}], indent=1) + "\n")


if __name__ == "__main__":
    main()
