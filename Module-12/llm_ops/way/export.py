"""Folders to hand on: the model in fewer bits, a card that says what it is, and transformers' own reading of it."""

from __future__ import annotations

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import torch
from llm_core.generate import Sampling, generate, generate_by_transformers, stop_ids
from llm_peft.chat.template import prompt_ids
from llm_serve.quantization.apply import written_out
from llm_serve.quantization.export import load_quantized
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from course import check
from course.files import write_text
from llm_ops.way.data import asked_signatures, read_prompts
from llm_ops.way.settings import BABY, METHODS
from llm_ops.way.stage import Made, Place

LOOKED_AT, NEW_TOKENS = 4, 32  # prompts, and tokens of each answer
CLOSE = 1e-3  # nats: transformers sums in another order


def run(place: Place) -> Made:
    """The stage."""
    facts = {name: _one(place, name) for name in place.settings.models}
    return Made(place.settings.models, facts)


def questions(place: Place, name: str, tokenizer: Any) -> list[list[int]]:
    """Held-out prompts of a model, as tokens."""
    if name == BABY:
        return [tokenizer(each)["input_ids"] for each in read_prompts(place)]
    return [prompt_ids(each.question, tokenizer) for each in asked_signatures(place)]


def by_transformers(folder: Path) -> Any:
    """The model of a folder as transformers makes it, in evaluation mode."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with contextlib.redirect_stderr(io.StringIO()):  # compressed-tensors shows bars of its own
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
        model(torch.tensor([[0]]))  # it writes its weights out when it is first called
    return model


def _one(place: Place, name: str) -> dict[str, Any]:
    folder = place.folder("export") / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place.folder("quantize") / name, folder)
    write_text(folder / "README.md", card(place, name))
    theirs, (packed, tokenizer) = by_transformers(folder), load_quantized(folder)
    ours: Any = written_out(packed)
    prompts = questions(place, name, tokenizer)[:LOOKED_AT]
    with torch.no_grad():
        logits = [model(torch.tensor(prompts[:1])).logits for model in (ours, theirs)]
    check.equal(f"{name}: transformers' logits of the folder", *logits, atol=CLOSE)
    ends = tuple(sorted({*stop_ids(ours), int(tokenizer.eos_token_id)}))
    greedy = Sampling(NEW_TOKENS, 0.0, stop_ids=ends)
    check.equal(f"{name}: transformers' tokens of {len(prompts)} answers", generate(ours, prompts, greedy, ends[0]),
                generate_by_transformers(theirs, prompts, greedy, ends[0]))  # fmt: skip
    return {"files": len(list(folder.iterdir())), "prompts": len(prompts)}


def card(place: Place, name: str) -> str:
    """What somebody must know who gets the folder."""
    shrunk, (method, scheme) = place.facts("quantize")[name], METHODS[name]
    if name == BABY:
        trained, aligned = place.facts("train"), place.facts("align")
        story = (
            f"A Llama of {trained['parameters']:,} parameters, trained for {trained['steps']:,} steps on functions of "
            f"Python's standard library and aligned by GRPO for {aligned['steps']} steps on a program's reward: the "
            "text is Python, has a body of three statements, and ends.\n\n"
            f"Of {place.facts('data')['questions']} held-out beginnings it wrote such a function for "
            f"{aligned['after']['body']:.0%} (before aligning {aligned['before']['body']:.0%}), drawn at temperature "
            "1.\n\n"
            "It is a teaching model. Its functions parse and do nothing of use."
        )
    else:
        adapted = place.facts("adapt")
        story = (
            f"SmolLM2-135M-Instruct (Apache-2.0) with an adapter of LoRA merged into it, trained for "
            f"{adapted['steps']} steps to describe a Python function as one line of JSON.\n\n"
            f"Held-out questions answered to the letter: {adapted['right']['after']} of {adapted['asked']} "
            f"(before {adapted['right']['before']})."
        )
    return (
        f"# {name}, {scheme.bits} bits\n\n{story}\n\n"
        f"Its linear layers are integers of {scheme.bits} bits with a scale for {scheme.group_size} weights, made by "
        f"{method}, in compressed-tensors' format, which transformers and vLLM load. On rows that were not "
        f"trained on this costs {shrunk['nats_lost']:+.4f} ± {shrunk['standard_error']:.4f} nats a token, and the file "
        f"has {shrunk['bytes']:,} bytes in place of {shrunk['bytes_before']:,}.\n"
    )


def folder_of(place: Place, name: str) -> Path:
    """The folder of a model that is handed on."""
    return place.folder("export") / name
