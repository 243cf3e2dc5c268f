"""How fast one GPU searches exactly: a query reads every vector, so bytes over bandwidth say how long it takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from llm_precision.benchmark import why
from llm_precision.meters import seconds_of
from torch import Tensor

from course.record import Setting
from llm_rag.search.exact import exact_bytes

DIM, K = 384, 10
QUERIES = (1, 16, 256)


def scan(setting: Setting) -> Iterator[dict[str, Any]]:
    """Inner products with all vectors and the best 10, for one query and for many; beside it a plain read of the bytes.

    Predicted: the bytes of the vectors over the bandwidth at which the same bytes are summed.
    """
    numbers = setting.pick(full=(1_000_000, 10_000_000), toy=(2_000,))
    for number in numbers:
        for dtype in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            row: dict[str, Any] = {"row": f"{number:,} x {DIM}, {name}", "vectors": number, "dim": DIM, "dtype": name}
            try:
                vectors = torch.empty(number, DIM, device=setting.device, dtype=dtype).normal_()
                row["bytes"] = exact_bytes(number, DIM, vectors.itemsize)
                read = _median(lambda: vectors.sum(dtype=torch.float32), setting.device)  # noqa: B023
                row |= {"read_seconds": read, "read_bytes_per_second": row["bytes"] / read, "predicted_seconds": read}
                for queries in QUERIES:
                    asked = torch.empty(queries, DIM, device=setting.device, dtype=dtype).normal_()
                    taken = _median(lambda: _search(asked, vectors), setting.device)  # noqa: B023
                    row[f"seconds_{queries}"] = taken
                    row[f"queries_per_second_{queries}"] = queries / taken
                row["bytes_per_second"] = row["bytes"] / row["seconds_1"]
                del vectors
            except (torch.OutOfMemoryError, RuntimeError) as error:
                row["missing"] = why(error)
            yield row


def _search(queries: Tensor, vectors: Tensor) -> Tensor:
    return (queries @ vectors.T).topk(K).indices


def _median(step: Any, device: str) -> float:
    step()
    return sorted(seconds_of(step, device) for _ in range(5))[2]
