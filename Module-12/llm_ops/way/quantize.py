"""Both models in fewer bits, and what that costs on text that was not trained on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from llm_core.store.registry import load_model
from llm_data.text.corpora import load_corpus
from llm_serve.quantization.apply import QuantizedModel, quantize, written_out
from llm_serve.quantization.calibration import text_rows
from llm_serve.quantization.export import load_quantized, save_quantized
from llm_serve.quantization.perplexity import paired_difference, row_losses
from llm_serve.quantization.rounding import WeightScheme
from safetensors.torch import load_file
from torch import Tensor, nn

from course import check
from llm_ops.way.align import TOO_FEW
from llm_ops.way.settings import BABY, CORPUS, METHODS, REAL
from llm_ops.way.stage import Made, Place

MOST_LOST = 0.05  # nats: a perplexity five hundredths larger
SOURCES = {BABY: ("align", "run/model"), REAL: ("adapt", "model")}


def run(place: Place) -> Made:
    """The stage."""
    facts = {name: _one(place, name) for name in place.settings.models}
    return Made(place.settings.models, facts)


def source(place: Place, name: str) -> Path:
    """The folder of a model as it was before it was quantised."""
    stage, path = SOURCES[name]
    return place.folder(stage) / path


def _one(place: Place, name: str) -> dict[str, Any]:
    model, tokenizer = load_model(source(place, name))
    calibration, unseen = _rows(name, tokenizer)
    method, scheme = METHODS[name]
    found = quantize(model, method, scheme, calibration if method == "gptq" else None)
    lost = paired_difference(row_losses(written_out(found.model), unseen), row_losses(model, unseen))
    check.when(place.settings.learns, TOO_FEW).holds(
        f"{name}: {scheme.bits} bits cost less than {MOST_LOST} nats a token", lost.nats < MOST_LOST, str(lost)
    )
    folder = place.folder("quantize") / name
    shutil.rmtree(folder, ignore_errors=True)
    save_quantized(found.model, tokenizer, folder)
    size, whole = ((each / "model.safetensors").stat().st_size for each in (folder, source(place, name)))
    tensors = load_file(folder / "model.safetensors")
    counted = sum(each.nbytes for key, each in tensors.items() if not key.endswith("weight_shape"))
    check.equal(f"{name}: bytes of weights and scales in the file", counted, predicted_bytes(found))
    again, _ = load_quantized(folder)
    with torch.no_grad():
        check.equal(
            f"{name}: logits before and after the file", again(unseen[:1]).logits, found.model(unseen[:1]).logits
        )
    return {
        "bits": scheme.bits, "method": method, "bytes": size, "bytes_before": whole, "nats_lost": lost.nats,
        "standard_error": lost.standard_error,
    }  # fmt: skip


def predicted_bytes(found: QuantizedModel) -> int:
    """Of a quantised model's file: its layers' bits, and whatever stays as it was."""
    layers, scheme = {each.name for each in found.layers}, found.scheme
    assert isinstance(scheme, WeightScheme)
    total = 0.0
    for name in layers:
        layer: Any = found.model.get_submodule(name)
        bits = scheme.bits_a_weight(layer.in_features, 8 * layer.weight_scale.element_size())
        total += layer.in_features * layer.out_features * bits / 8
    return round(total) + _others(found.model, layers)


def _others(model: nn.Module, layers: set[str]) -> int:
    """Bytes of all other weights, tied ones once."""
    seen: dict[int, Tensor] = {}
    for name, values in model.named_parameters():
        if name.rsplit(".", 1)[0] not in layers:
            seen[values.data_ptr()] = values
    return sum(each.nbytes for each in seen.values())


def _rows(name: str, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Rows to calibrate on, of the training side, and rows of the other side: functions, or modules for smollm2."""
    corpus = load_corpus(CORPUS if name == BABY else "python")
    sides = (corpus.documents(side) for side in ("train", "val"))
    calibration, unseen = (text_rows(side, tokenizer, rows=32, time=64) for side in sides)
    return calibration, unseen
