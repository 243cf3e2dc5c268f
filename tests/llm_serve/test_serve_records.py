"""What a GPU is to measure, at toy size; and the race's rules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from llm_serve.cache.sizes import kv_bytes_per_token
from llm_serve.engine.config import EngineConfig
from llm_serve.quantization.fp8 import Fp8Scheme, weight_to_fp8
from llm_serve.records import decode
from tiny_models import pair

from course.record import Setting

RACE = Path(__file__).parents[2] / "Module-7" / "race" / "engines.py"


@pytest.fixture(scope="module")
def race():
    spec = importlib.util.spec_from_file_location("race_engines", RACE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("weights", ["bfloat16", "fp8"])
def test_rows_of_a_model(weights):
    rows = list(decode.measured(Setting("cpu", toy=True), "8B", weights))
    assert [row["row"] for row in rows] == [
        f"8B {weights}, batch 1", f"8B {weights}, batch 2", f"8B {weights}, prompt of 64",
    ]  # fmt: skip
    assert not any("missing" in row for row in rows)
    for row in rows[:2]:
        assert row["eager_tokens_per_second"] == pytest.approx(row["batch"] / row["eager_seconds"])
        assert row["eager_share_of_bandwidth"] == pytest.approx(row["predicted_seconds"] / row["eager_seconds"])
    model = decode.random_gpt(decode.TOY, "cpu", weights, torch.float32)
    held = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    more = rows[1]["read_bytes"] - rows[0]["read_bytes"]
    assert rows[0]["weight_bytes"] == held and more == decode.HELD * kv_bytes_per_token(decode.TOY, 4)
    assert rows[0]["read_bytes"] == held - model.model.embed_tokens.weight.nbytes + more
    assert rows[2]["flops"] > 2 * 64 * sum(each.numel() for each in model.model.layers.parameters() if each.ndim == 2)


def test_eight_bits_are_a_quarter_and_their_product_is_the_written_out_one():
    layer = torch.nn.Linear(64, 32, bias=False)
    product = decode.Fp8Product(layer)
    assert product.numbers.element_size() == 1 and product.numbers.shape == layer.weight.shape
    x = torch.randn(2, 3, 64)
    weight = weight_to_fp8(layer.weight.detach(), Fp8Scheme("channel")).dequantize()
    scale = x.abs().amax(-1, keepdim=True) / 448
    written_out = (x / scale).to(torch.float8_e4m3fn).float() * scale
    torch.testing.assert_close(product(x), written_out @ weight.T, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_said(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(decode, "random_gpt", full)
    (row,) = decode.measured(Setting("cuda", toy=True), "34B", "bfloat16")
    assert row["row"] == "34B bfloat16" and "memory" in row["missing"]


def test_a_race_is_over_equal_work(race):
    """All contenders write what each request asked for, and the same tokens; one that cuts an answer does not race."""
    theirs, ours = pair()
    work = race.arrivals(5, 50.0, 3, 12, 200, seed=1)
    work = [race.Arrival(each.at, tuple(token % 60 for token in each.prompt), each.new) for each in work]
    assert [each.at for each in work] == sorted(each.at for each in work) and work[-1].at > 0
    config = EngineConfig(num_blocks=32, max_num_seqs=3, max_num_batched_tokens=16)
    found = race.race({"ours": (ours, race.ours), "static generate": (theirs, race.static)}, work, 3, config, rounds=1)
    assert found["same_answers"] == {"static generate": 5} and found["tokens"] == sum(each.new for each in work)
    assert found["ours_over"]["static generate"]["median"] == pytest.approx(
        found["all"]["ours"][0] / found["all"]["static generate"][0]
    )

    def lazy(model, work, batch, config):
        return {number: [0] for number in range(len(work))}

    with pytest.raises(RuntimeError, match="lazy wrote an answer of another length than asked"):
        race.race({"ours": (ours, race.ours), "lazy": (None, lazy)}, work, 3, config, rounds=1)


def test_the_races_options(race, monkeypatch, capsys):
    for options, message in (
        (["--requests", "0"], "--requests must be at least 1"),
        (["--shortest", "9", "--longest", "8"], "--longest 8 must be at least --shortest 9"),
    ):
        monkeypatch.setattr(sys, "argv", ["engines.py", *options])
        with pytest.raises(SystemExit):
            race.main()
        assert message in capsys.readouterr().err
