"""Servers under one load: ours, transformers', and vLLM's where an environment has it; throughput against latency.

    uv run python Module-7/race/servers.py --vllm /tmp/vllm/bin/python --record docs/results/servers_race.json

(`Module-7/race/vllm_tokens.py` says how that environment is made.) Each server gets the same requests at the same
times, at several rates and all at once, one server after the other, the whole twice. All hold float32 weights and are
started with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import asdict
from datetime import date
from pathlib import Path

from llm_core import load_model, save_model
from llm_serve.bench import jobs, load, summary
from llm_serve.server.child import ours, started

from course import scale
from course.files import write_text

BIN = Path(sys.executable).parent
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip


def commands(folder: str, vllm: str | None) -> dict[str, list[str]]:
    """How each server is started, but for its port."""
    found = {
        "ours": ours(folder, "--max_num_seqs", "16", "--num_blocks", "512"),
        "transformers serve": [
            str(BIN / "transformers"), "serve", folder, "--continuous-batching", "--cb-num-blocks", "64",
            "--cb-max-batch-tokens", "256", "--dtype", "float32", "--device", "cpu", "--log-level", "error",
        ],
    }  # fmt: skip
    if vllm:
        found["vLLM"] = [
            vllm, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--dtype", "float32",
            "--enforce-eager", "--max-model-len", "1024", "--block-size", "32", "--max-num-seqs", "16",
        ]  # fmt: skip
    return found


def main() -> None:
    """Start, load, print, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", help="Python of an environment with vLLM")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1.0, 2.0, 0.0], help="a second; 0: all at once")
    parser.add_argument("--prompt_words", type=int, default=50)
    parser.add_argument("--max_tokens", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--record", type=Path, help="append what was measured to this JSON file")
    options = parser.parse_args()
    if min(options.requests, options.prompt_words, options.max_tokens, options.rounds) < 1 or min(options.rates) < 0:
        parser.error("--requests, --prompt_words, --max_tokens and --rounds must be at least 1, and --rates 0 or more")
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "smollm2-135m"
        save_model(*load_model("smollm2-135m"), folder)
        for number in range(options.rounds):
            for name, command in commands(str(folder), options.vllm).items():
                try:
                    with started(command, ENVIRONMENT) as url:
                        model = str(folder) if name != "ours" else folder.name
                        asyncio.run(load(url, model, jobs(2, 0, 10, 4, seed=99)))  # warm
                        for rate in options.rates:
                            work = jobs(options.requests, rate, options.prompt_words, options.max_tokens, seed=number)
                            samples = asyncio.run(load(url, model, work))
                            found = summary(samples)
                            row = {"row": name, "round": number, "rate": rate, **asdict(found)}
                            errors = sorted({each.error for each in samples if each.error})
                            rows.append({**row, **({"errors": errors} if errors else {})})
                            print(f"{name:<20} {rate:g}/s: {found.tokens_per_second:6.1f} tokens/s, first token "
                                  f"{found.first[0]:.2f} s, token to token {found.between[0] * 1e3:.0f} ms, "
                                  f"{found.failed} failed", flush=True)  # fmt: skip
                except RuntimeError as error:
                    rows.append({"row": name, "round": number, "missing": str(error)})
                    print(f"{name}: {error}", flush=True)
    if options.record:
        old = json.loads(options.record.read_text("utf-8")) if options.record.is_file() else []
        head = {
            "date": date.today().isoformat(), "hardware": scale.hardware, "requests": options.requests,
            "prompt_words": options.prompt_words, "max_tokens": options.max_tokens,
            "command": f"Module-7/race/servers.py --vllm PYTHON --record {options.record}",
        }  # fmt: skip
        write_text(options.record, json.dumps([*old, {**head, "rows": rows}], indent=1) + "\n")


if __name__ == "__main__":
    main()
