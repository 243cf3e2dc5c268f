"""Our engine beside transformers' static batches, its continuous batching, and CTranslate2, on the same arrivals.

`uv run python Module-7/race/engines.py --record docs/results/engines_race.json` prints tokens a second of each, the
ratios of ours to theirs round by round, and how many answers are the same. CTranslate2, a compiled engine, joins where
it is installed (`uv run --with ctranslate2==4.8.5 python Module-7/race/engines.py`).

Requests of mixed lengths come at times drawn once. An answer is as long as asked, whatever is written: a race needs
equal work. Static batches take the requests in the order of their coming, `--batch` at a time, as soon as the batch
before is done, and run until the longest answer of the batch is whole.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from llm_core import load_model
from llm_core.generate import Sampling, pad_left
from llm_precision.meters import Seconds
from llm_serve import Engine, EngineConfig, Request
from torch import nn

from course import scale
from course.files import write_text

Answers = dict[int, list[int]]  # tokens by the request's number


@dataclass(frozen=True)
class Arrival:
    """A request: when it comes, its prompt, and how many tokens are wanted."""

    at: float
    prompt: tuple[int, ...]
    new: int


def arrivals(count: int, rate: float, shortest: int, longest: int, vocab: int, seed: int = 0) -> list[Arrival]:
    """Requests at Poisson times (all at once for rate 0), prompts and answers of lengths even on a log scale."""
    dice = random.Random(seed)

    def length() -> int:
        return round(shortest * (longest / shortest) ** dice.random())

    now, found = 0.0, []
    for _ in range(count):
        now += dice.expovariate(rate) if rate else 0.0
        found.append(Arrival(now, tuple(dice.randrange(100, vocab) for _ in range(length())), length()))
    return found


def ours(model: nn.Module, work: list[Arrival], batch: int, config: EngineConfig) -> Answers:
    """Serve them with the engine of `llm_serve`."""
    engine = Engine(model, None, config)
    engine.stop_ids = ()  # answers of the wanted length
    begin, todo = time.perf_counter(), list(enumerate(work))
    written: Answers = {}
    names: dict[int, int] = {}
    while todo or engine.unfinished:
        while todo and todo[0][1].at <= time.perf_counter() - begin:
            number, each = todo.pop(0)
            asked = Sampling(max_new_tokens=each.new, temperature=0)
            names[engine.submit(Request(each.prompt, asked))] = number
        if not engine.unfinished:
            time.sleep(max(0.0, todo[0][1].at - (time.perf_counter() - begin)))
        for delta in engine.step():
            if delta.token is not None:
                written.setdefault(names[delta.number], []).append(delta.token)
    return written


def batches(work: list[Arrival], size: int) -> Iterator[list[tuple[int, Arrival]]]:
    """Static batches: whoever has come when the batch before is done, with their numbers; at most `size`."""
    begin, todo = time.perf_counter(), list(enumerate(work))
    while todo:
        time.sleep(max(0.0, todo[0][1].at - (time.perf_counter() - begin)))
        now = time.perf_counter() - begin
        part = [each for each in todo[:size] if each[1].at <= now]
        del todo[: len(part)]
        yield part


@torch.inference_mode()
def static(model: Any, work: list[Arrival], batch: int, config: EngineConfig) -> Answers:
    """Serve them with `generate` of transformers, a padded batch after the other."""
    written: Answers = {}
    for part in batches(work, batch):
        ids, mask = pad_left([each.prompt for _, each in part], 0, torch.device("cpu"))
        most = max(each.new for _, each in part)
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=most, min_new_tokens=most, do_sample=False, pad_token_id=0
        )
        for (number, each), row in zip(part, out[:, ids.shape[1] :].tolist(), strict=True):
            written[number] = row[: each.new]
    return written


def continuous(model: Any, work: list[Arrival], batch: int, config: EngineConfig) -> Answers:
    """Serve them with the continuous batching of transformers, with the same blocks and the same limits."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    asked = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=max(w.new for w in work))
    blocks = -(-config.num_blocks * config.block_size // 32)
    limits = ContinuousBatchingConfig(
        page_size=32, num_blocks=blocks, max_batch_tokens=config.max_num_batched_tokens,
        max_requests_per_batch=config.max_num_seqs,
    )  # fmt: skip
    manager = model.init_continuous_batching(generation_config=asked, continuous_batching_config=limits)
    begin, todo, open_ = time.perf_counter(), list(enumerate(work)), 0
    written: Answers = {}
    manager.start()
    try:
        while todo or open_:
            while todo and todo[0][1].at <= time.perf_counter() - begin:
                number, each = todo.pop(0)
                manager.add_request(list(each.prompt), request_id=str(number), max_new_tokens=each.new)
                open_ += 1
            found = manager.get_result(timeout=0.01)
            if found is not None and found.is_finished():
                written[int(found.request_id)] = list(found.generated_tokens)
                open_ -= 1
    finally:
        manager.stop(block=True)
    return written


def compiled(folder: Path) -> Callable[[nn.Module, list[Arrival], int, EngineConfig], Answers]:
    """Serve them with CTranslate2's own batching, from a folder that its converter wrote."""
    import ctranslate2

    generator = ctranslate2.Generator(str(folder), device="cpu", intra_threads=torch.get_num_threads())

    def serve(model: nn.Module, work: list[Arrival], batch: int, config: EngineConfig) -> Answers:
        names = json.loads((folder / "vocabulary.json").read_text("utf-8"))
        written: Answers = {}
        for part in batches(work, batch):
            prompts = [[names[token] for token in each.prompt] for _, each in part]
            most = max(each.new for _, each in part)
            out = generator.generate_batch(
                prompts, max_length=most, min_length=most, beam_size=1, sampling_topk=1, include_prompt_in_result=False
            )
            for (number, each), row in zip(part, out, strict=True):
                written[number] = list(row.sequences_ids[0][: each.new])
        return written

    return serve


def race(
    contenders: dict[str, tuple[Any, Callable[..., Answers]]], work: list[Arrival], batch: int, config: EngineConfig,
    rounds: int,
) -> dict[str, Any]:  # fmt: skip
    """All contenders in turns, the first round not counted: tokens a second and whose answers are the same."""
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    worked: dict[str, list[float]] = {name: [] for name in contenders}
    answers: dict[str, Answers] = {}
    tokens = sum(each.new for each in work)
    for number in range(rounds + 1):
        for name, (model, serve) in contenders.items():
            begin, cpu = time.perf_counter(), time.process_time()
            answers[name] = serve(model, work, batch, config)
            taken, cpu = time.perf_counter() - begin, time.process_time() - cpu
            wrong = [n for n, each in enumerate(work) if len(answers[name].get(n, [])) != each.new]
            if wrong:
                raise RuntimeError(f"{name} wrote an answer of another length than asked, first for request {wrong[0]}")
            if number:
                speeds[name].append(tokens / taken)
                worked[name].append(tokens / cpu)
                print(f"round {number}: {name:<20} {tokens / taken:7.1f} tokens/s, {tokens / cpu:7.1f} a CPU second")
    first, *others = contenders

    def over(of: dict[str, list[float]]) -> dict[str, Any]:
        return {
            name: Seconds.of([a / b for a, b in zip(of[first], of[name], strict=True)])._asdict() for name in others
        }

    return {
        "requests": len(work), "tokens": tokens, "tokens_per_s": {n: statistics.median(v) for n, v in speeds.items()},
        "all": speeds, "ours_over": over(speeds), "ours_over_by_cpu_seconds": over(worked),
        "same_answers": {name: sum(answers[name][n] == answers[first][n] for n in range(len(work))) for name in others},
    }  # fmt: skip


def main() -> None:
    """Parse, race, print, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.0, help="arrivals a second; 0: all at once")
    parser.add_argument("--shortest", type=int, default=8, help="tokens of a prompt, and of an answer")
    parser.add_argument("--longest", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help="of static batches, and sequences of the others at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", type=Path, help="append what was measured to this JSON file")
    options = parser.parse_args()
    for name in ("requests", "shortest", "batch", "rounds", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.longest < options.shortest:
        parser.error(f"--longest {options.longest} must be at least --shortest {options.shortest}")
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    model, _ = load_model(options.model)
    found_model: tuple[Any, Any] = load_model(options.model, transformers=True)
    theirs, tokenizer = found_model
    config = EngineConfig(
        num_blocks=-(-options.batch * 2 * options.longest // 16), max_num_seqs=options.batch,
        max_num_batched_tokens=max(256, options.batch), enable_prefix_caching=False,
    )  # fmt: skip
    work = arrivals(options.requests, options.rate, options.shortest, options.longest, 40_000)
    contenders: dict[str, tuple[Any, Callable[..., Answers]]] = {
        "ours": (model, ours), "static generate": (theirs, static), "continuous batching": (theirs, continuous),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        try:
            from ctranslate2.converters import TransformersConverter
        except ImportError:
            print("CTranslate2 is not installed and does not race")
        else:
            theirs.save_pretrained(Path(place) / "model")
            tokenizer.save_pretrained(Path(place) / "model")
            TransformersConverter(str(Path(place) / "model")).convert(str(Path(place) / "compiled"))
            contenders["CTranslate2"] = (None, compiled(Path(place) / "compiled"))
        found = race(contenders, work, options.batch, config, options.rounds)
    for name, ratio in found["ours_over"].items():
        print(
            f"ours over {name}: {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}), by CPU seconds "
            f"{found['ours_over_by_cpu_seconds'][name]['median']:.2f}; "
            f"{found['same_answers'][name]} of {found['requests']} answers the same"
        )
    if options.record:
        old = json.loads(options.record.read_text("utf-8")) if options.record.is_file() else []
        head = {
            "date": date.today().isoformat(), "hardware": scale.hardware, "torch": torch.__version__,
            "transformers": transformers.__version__, "command": "Module-7/race/engines.py " + " ".join(sys.argv[1:]),
        }  # fmt: skip
        row = {
            **head, "model": options.model, "rate": options.rate, "batch": options.batch, "threads": options.threads,
            "lengths": [options.shortest, options.longest], **found,
        }  # fmt: skip
        write_text(options.record, json.dumps([*old, row], indent=1) + "\n")


if __name__ == "__main__":
    main()
