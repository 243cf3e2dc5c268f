"""A round of GRPO with random weights on one GPU: seconds of writing and of learning, and the memory of both."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from llm_core.config import GPTConfig
from llm_peft.lora.config import LoRAConfig
from llm_peft.lora.inject import inject
from llm_peft.prepare import Prepared
from llm_peft.settings import FineTune
from llm_precision.benchmark import why
from llm_scale.planner import MODELS
from llm_serve.records.decode import random_gpt
from torch import Tensor

from course.record import Setting
from llm_align.data.records import Prompt
from llm_align.rollout.write import Rollout
from llm_align.training.policy import GRPOModule, PolicySettings

PROMPTS, GROUP, PROMPT = 8, 8, 128
TOY = GPTConfig(128, 64, 128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                max_position_embeddings=512, tie_word_embeddings=False)  # fmt: skip
ROWS = (("1B", "full"), ("1B", "lora"), ("8B", "lora"))


def grpo(setting: Setting) -> Iterator[dict[str, Any]]:
    """8 prompts of 128 tokens with 8 answers each: one step."""
    for name, method in ROWS:
        label = f"{name} {method}, {PROMPTS} x {GROUP} answers"
        try:
            yield {"row": label, **measured(setting, name, method)}
        except (torch.OutOfMemoryError, RuntimeError) as error:
            yield {"row": label, "missing": why(error)}
        if setting.device == "cuda":
            torch.cuda.empty_cache()


def measured(setting: Setting, name: str, method: str) -> dict[str, Any]:
    """A warm-up and a step."""
    cuda, tokens, batch = setting.device == "cuda", setting.pick(full=128, toy=4), setting.pick(full=8, toy=16)
    narrow = torch.bfloat16 if cuda and method == "lora" else torch.float32
    settings = FineTune(method=method, library="ours", lora=LoRAConfig(r=16, lora_alpha=32))
    model = random_gpt(setting.pick(full=MODELS[name], toy=TOY), setting.device, "plain", narrow)
    if method == "full":
        model.requires_grad_(True)
    else:
        inject(model, settings.lora)
    prepared = Prepared(model, None, "random", name)
    asked = PolicySettings(group=GROUP, max_new_tokens=tokens, measure_kl=False)
    module = GRPOModule(prepared, settings, by_tokens, asked)
    trained = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=cuda)
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(1, model.config.vocab_size, (PROMPTS, PROMPT), generator=dice).tolist()
    prompts = [Prompt(tuple(row), "") for row in ids]
    for last in (False, True):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        begin = _now(cuda)
        rows = module.make_round(prompts, [place * GROUP for place in range(PROMPTS)])
        wrote = _now(cuda)
        for part in range(0, PROMPTS * GROUP, batch):
            total, _ = module.loss({key: values[part : part + batch] for key, values in rows.items()})
            (total / (PROMPTS * GROUP)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if last:
            end, written = _now(cuda), int((rows["lengths"] - rows["prompt_lengths"]).sum())
    return {
        "answers": PROMPTS * GROUP, "prompt_tokens": PROMPT, "written_tokens": written, "answers_a_batch": batch,
        "writing_seconds": wrote - begin, "learning_seconds": end - wrote,
        "share_of_writing": (wrote - begin) / (end - begin), "written_per_second": written / (wrote - begin),
        "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }  # fmt: skip


def by_tokens(rollout: Rollout) -> Tensor:
    """A reward that differs from answer to answer, of no meaning."""
    return (rollout.ids.sum(dim=1) % 7 / 7).float()


def _now(cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
