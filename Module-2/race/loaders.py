"""Our shards and loader against `datasets.map` with the usual grouping recipe, and against a DataLoader over lists.

    uv run python Module-2/race/loaders.py

prints, for this machine: tokens per second of tokenising a corpus, of reading batches from it, the share of a training
step that is spent waiting for a batch, and the peak memory of each. Every contender runs in a process of its own, in
turns (A B C A B C ...), on the same documents, tokenizer, context and batch size; shown are medians, and the range.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

CONTENDERS = {
    "ours": "LLMDataModule's shards and loader, concat",
    "ours, best_fit": "the same, packed by best fit",
    "datasets.map": "datasets.map, tokenise and group_texts; DataLoader over it",
    "lists": "one tokenizer call; DataLoader over lists",
}


class PeakMemory:
    """The largest memory of this process and its children while it is open, in bytes, sampled."""

    def __enter__(self) -> PeakMemory:
        self.peak = 0
        self._open = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()

    def _watch(self) -> None:
        while self._open:
            self.peak = max(self.peak, memory())
            time.sleep(0.05)


def memory() -> int:
    """Bytes that this process and its children hold; pages that several of them share are counted once (on Linux;
    elsewhere only pages that one process has to itself are counted)."""
    import psutil

    total = 0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            info = process.memory_full_info()
        except psutil.Error:
            continue
        total += getattr(info, "pss", info.uss)
    return total


def build_ours(documents: list[str], tokenizer: Any, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    from llm_data.rows.loader import StatefulLoader
    from llm_data.rows.packing import Packing
    from llm_data.rows.table import RowTable, build_table
    from llm_data.shards.reader import TokenShards
    from llm_data.shards.writer import build_shards
    from llm_data.text.corpora import Corpus

    corpus = Corpus("race", "race", "", lambda: iter(documents), val_percent=0, test_percent=0)
    build_shards(corpus, "train", tokenizer, folder, num_workers=arguments.processes, progress=False)
    packing: Packing = "best_fit" if "best_fit" in arguments.contender else "concat"
    table = build_table(TokenShards(folder), folder / "rows", arguments.context, packing, 0, tokenizer.pad_token_id)

    return lambda: StatefulLoader(RowTable(table), arguments.batch_size, drop_last=True)


def build_datasets(
    documents: list[str], tokenizer: Any, folder: Path, arguments: argparse.Namespace
) -> Callable[[], Any]:
    from torch.utils.data import DataLoader

    context = arguments.context

    def tokenise(batch: dict[str, list[str]]) -> Any:
        return tokenizer(batch["text"])

    def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: sum(rows, []) for name, rows in batch.items()}  # noqa: RUF017  # as the recipe has it
        total = len(joined["input_ids"]) // context * context
        result = {name: [ids[at : at + context] for at in range(0, total, context)] for name, ids in joined.items()}
        result["labels"] = result["input_ids"].copy()
        return result

    dataset = arguments.dataset.map(
        tokenise, batched=True, num_proc=arguments.processes, remove_columns=["text"], load_from_cache_file=False
    )
    grouped = dataset.map(group_texts, batched=True, num_proc=arguments.processes, load_from_cache_file=False)
    grouped = grouped.remove_columns([name for name in grouped.column_names if name not in ("input_ids", "labels")])
    return lambda: DataLoader(
        grouped.with_format("torch"), batch_size=arguments.batch_size, shuffle=True, drop_last=True
    )


def build_lists(documents: list[str], tokenizer: Any, folder: Path, arguments: argparse.Namespace) -> Callable[[], Any]:
    import torch
    from torch.utils.data import DataLoader

    ids = [token for document in tokenizer(documents)["input_ids"] for token in (*document, tokenizer.eos_token_id)]
    time = arguments.context
    rows = [ids[start : start + time] for start in range(0, len(ids) - time + 1, time)]

    def collate(rows: list[list[int]]) -> dict[str, Any]:
        batch = torch.tensor(rows)
        return {"input_ids": batch, "labels": batch.clone()}

    size, examples = arguments.batch_size, cast(Any, rows)  # a list serves as a dataset
    return lambda: DataLoader(examples, batch_size=size, shuffle=True, drop_last=True, collate_fn=collate)


BUILDERS = {"ours": build_ours, "ours, best_fit": build_ours, "datasets.map": build_datasets, "lists": build_lists}


def run_contender(arguments: argparse.Namespace) -> dict[str, float]:
    """Build, read and train with one contender, in this process."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if arguments.contender == "lists" else "false"
    import datasets
    import torch
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(arguments.processes)
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.folder / "tokenizer")
    documents = json.loads((arguments.folder / "documents.json").read_text(encoding="utf-8"))
    size = sum(len(document.encode()) for document in documents)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if arguments.contender == "datasets.map":
            # Reading the text into Arrow is not timed: the other contenders begin with documents in memory too.
            arguments.dataset = datasets.Dataset.from_generator(
                lambda: ({"text": document} for document in documents), cache_dir=str(folder)
            )
            documents = []
        before = memory()
        with PeakMemory() as building:
            start = time.perf_counter()
            make_loader = BUILDERS[arguments.contender](documents, tokenizer, folder, arguments)
            build_seconds = time.perf_counter() - start
        documents = []
        with PeakMemory() as reading:
            read_seconds, tokens = read(make_loader(), arguments.seconds)
        waiting, step = train(make_loader(), len(tokenizer), arguments)
    return {
        "build": size / build_seconds,
        "build_memory": building.peak - before,
        "read": tokens / read_seconds,
        "read_memory": reading.peak - before,
        "batch_seconds": read_seconds / tokens * arguments.batch_size * arguments.context,
        "waiting": waiting,
        "step": step,
    }


def read(loader: Iterable[Any], limit: float) -> tuple[float, int]:
    """Seconds and positions of reading batches: for `limit` seconds, at least 20 batches, epochs as they come."""
    tokens = batches = 0
    iterator = endless(loader)
    next(iterator)
    start = time.perf_counter()
    while (elapsed := time.perf_counter() - start) < limit or batches < 20:
        tokens += next(iterator)["input_ids"].numel()
        batches += 1
    return elapsed, tokens


def train(loader: Iterable[Any], vocab_size: int, arguments: argparse.Namespace) -> tuple[float, float]:
    """Share of a training step spent in the loader, and the seconds of a step: medians over the steps."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from course import scale

    torch.manual_seed(0)
    # BabyGPT's size: about a million parameters.
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=arguments.context, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(scale.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    iterator = endless(loader)
    waits, steps = [], []
    for _ in range(arguments.steps + 2):
        start = time.perf_counter()
        batch = next(iterator)
        loaded = time.perf_counter()
        batch = {name: values.to(scale.device) for name, values in batch.items()}
        optimiser.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        loss.item()  # waits for the device
        waits.append(loaded - start)
        steps.append(time.perf_counter() - start)
    step = statistics.median(steps[2:])  # the first two warm up
    return statistics.median(waits[2:]) / step, step


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", default="python", help="a name for load_corpus")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--processes", type=int, default=2, help="processes or threads that tokenise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of reading, each round")
    parser.add_argument("--steps", type=int, default=10, help="training steps, each round")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(run_contender(arguments)))
        return
    from llm_data.text.corpora import load_corpus
    from llm_data.tokenizers.fast import train_fast_tokenizer

    from course import scale
    from course.progress import track

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = list(load_corpus(arguments.corpus).documents("train"))
        train_fast_tokenizer(documents, arguments.vocab_size).save_pretrained(folder / "tokenizer")
        (folder / "documents.json").write_text(json.dumps(documents), encoding="utf-8")
        size = sum(len(document.encode()) for document in documents)
        results: dict[str, list[dict[str, float]]] = {contender: [] for contender in CONTENDERS}
        turns = [contender for _ in range(arguments.rounds) for contender in CONTENDERS]
        for contender in track(turns, "runs"):
            command = [sys.executable, __file__, *sys.argv[1:], "--contender", contender, "--folder", name]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[contender].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{scale}\ncorpus {arguments.corpus}: {size / 1e6:.1f} MB in {len(documents):,} documents; ", end="")
    print(f"batches of {arguments.batch_size} x {arguments.context}; {arguments.processes} processes")
    report(results)


def report(results: dict[str, list[dict[str, float]]]) -> None:
    """The table, and the targets."""

    def middle(contender: str, key: str) -> float:
        return statistics.median(run[key] for run in results[contender])

    def spread(contender: str, key: str, scale: float, digits: int) -> str:
        values = sorted(run[key] / scale for run in results[contender])
        text = f"{statistics.median(values):.{digits}f}"
        return text + f" ({values[0]:.{digits}f} to {values[-1]:.{digits}f})" if len(values) > 1 else text

    columns = {
        "tokenising, MB of text/s": ("build", 1e6, 2),
        "memory while tokenising, above what the imports and the text take, MB": ("build_memory", 1e6, 0),
        "reading, million tokens/s": ("read", 1e6, 2),
        "memory while reading, MB": ("read_memory", 1e6, 0),
        "waiting, % of a step": ("waiting", 0.01, 3),
    }
    for title, (key, scale, digits) in columns.items():
        print(f"\n{title}")
        for contender, meaning in CONTENDERS.items():
            print(f"  {contender:16}{spread(contender, key, scale, digits):28}{meaning}")
    print(f"\na training step: {1000 * middle('ours', 'step'):.0f} ms")
    reads = middle("ours", "read") / middle("datasets.map", "read")
    builds = middle("ours", "build") / middle("datasets.map", "build")
    for text, met in (
        (f"ours reads {reads:.1f} times as fast as the recipe's loader (target 20)", reads >= 20),
        (
            f"ours waits {100 * middle('ours', 'waiting'):.3f}% of a step (target under 1)",
            middle("ours", "waiting") < 0.01,
        ),
        (f"ours tokenises {builds:.2f} times as fast as datasets.map (target 1)", builds >= 1),
    ):
        print(f"{'met   ' if met else 'MISSED'}  {text}")


if __name__ == "__main__":
    main()
