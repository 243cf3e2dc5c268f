"""Our GPTQ beside llm-compressor's on the same weights, Hessian and grid.

llm-compressor wants an older transformers than this course, so that it has an environment of its own:

    uv venv --python 3.11 /tmp/llm-compressor
    uv pip install --python /tmp/llm-compressor/bin/python llmcompressor==0.14.0.1 jaxtyping==0.3.11 filelock==4.2.11
    PYTHONPATH=.:Module-7 /tmp/llm-compressor/bin/python Module-7/race/gptq_reference.py \
        --record docs/results/gptq_reference.json

It computes in float32, ours in float64. Where a weight lies between two integers the last bit decides, and every later
column of its row follows. So it is run twice: as it is, and with its precision raised to float64, where nothing but the
algorithm can differ.
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from llm_serve.quantization.gptq import gptq, output_error
from llm_serve.quantization.rounding import WeightScheme, fit_grid, round_to_nearest
from torch import Tensor

from course.files import write_text
from course.hardware import hardware

SHAPES = ((192, 576), (1536, 576), (576, 1536))  # of SmolLM2-135M
SCHEMES = tuple(
    WeightScheme(bits, symmetric, group_size, actorder)
    for bits, symmetric, group_size in ((4, True, 64), (4, False, 64), (4, True, None), (3, True, 64), (2, False, 64))
    for actorder in (False, True)
)


def layer(outputs: int, inputs: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights, and the Hessian of inputs that are correlated and of very different sizes, as a trained model's are."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * 0.05
    mixing = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    sizes = torch.randn(inputs, generator=generator).exp()
    x = torch.randn(4 * inputs, inputs, generator=generator) @ mixing * sizes
    return weight, (x.T @ x).double() / len(x)


def theirs(weight: Tensor, hessian: Tensor, scheme: WeightScheme, precision: torch.dtype) -> Tensor:
    """The dequantised weights of llm-compressor, on our grid."""
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq import gptq_quantize, helpers

    for module in (gptq_quantize, helpers):
        module.GPTQ_PRECISION = precision
    arguments = QuantizationArgs(
        num_bits=scheme.bits, symmetric=scheme.symmetric, strategy="channel" if scheme.group_size is None else "group",
        group_size=scheme.group_size, actorder="weight" if scheme.actorder else None,
    )  # fmt: skip
    scale, zero_point = fit_grid(weight, scheme)
    zero = torch.zeros_like(scale, dtype=torch.int8) if zero_point is None else zero_point
    batch: list[Any] = [each[None].clone() for each in (weight, hessian.to(precision), scale.to(precision), zero)]
    found, _, fallback = gptq_quantize.quantize_weight(*batch, None, arguments, percdamp=scheme.damping)
    assert not fallback.any(), "llm-compressor fell back to rounding to nearest"
    return found[0]


def compare(shape: tuple[int, int], scheme: WeightScheme) -> dict[str, Any]:
    """Both on one matrix: the largest difference of a weight, the share that is equal, and the errors."""
    weight, hessian = layer(*shape)
    ours = gptq(weight, hessian, scheme).dequantize()
    row: dict[str, Any] = {
        "shape": shape, "bits": scheme.bits, "symmetric": scheme.symmetric, "group_size": scheme.group_size,
        "actorder": scheme.actorder, "error": {
            "ours": output_error(ours - weight, hessian),
            "nearest": output_error(round_to_nearest(weight, scheme).dequantize() - weight, hessian),
        },
    }  # fmt: skip
    for precision in (torch.float32, torch.float64):
        name = str(precision).removeprefix("torch.")
        other = theirs(weight, hessian, scheme, precision)
        row["error"][f"theirs_{name}"] = output_error(other - weight, hessian)
        row[name] = {
            "largest_difference": float((ours - other).abs().max()),
            "equal_share": float(torch.isclose(ours, other, rtol=0, atol=1e-6).double().mean()),
        }
    return row


def main() -> None:
    """Compare all, print a line each, and write a record where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, help="append what was measured to this JSON file")
    options = parser.parse_args()
    rows = []
    for shape in SHAPES:
        for scheme in SCHEMES:
            row = compare(shape, scheme)
            rows.append(row)
            plain, wide, error = row["float32"], row["float64"], row["error"]
            print(
                f"{shape} {scheme}: as it is {plain['equal_share']:.4%} equal, error {error['theirs_float32']:.5g}, "
                f"ours {error['ours']:.5g}, nearest {error['nearest']:.5g}; in float64 {wide['equal_share']:.4%} "
                f"equal, largest difference {wide['largest_difference']:.1e}",
                flush=True,
            )
    worst = max(row["float64"]["largest_difference"] for row in rows)
    print(f"largest difference of a weight in float64: {worst:.1e}")
    if options.record:
        old = json.loads(options.record.read_text("utf-8")) if options.record.is_file() else []
        head = {
            "date": date.today().isoformat(), "hardware": hardware(),
            "torch": torch.__version__,
            "versions": {name: version(name) for name in ("llmcompressor", "compressed-tensors", "transformers")},
            "command": f"Module-7/race/gptq_reference.py --record {options.record}",
        }  # fmt: skip
        write_text(options.record, json.dumps([*old, {**head, "rows": rows}], indent=1) + "\n")


if __name__ == "__main__":
    main()
