"""What GPUs can serve, by hand and as a command."""

from __future__ import annotations

import pytest
from llm_core.config import GPTConfig
from llm_core.costs.counts import num_parameters
from llm_scale.planner import MODELS
from llm_serve.cli import main
from llm_serve.plan import Machine, serving, step_seconds, table, weight_bytes

MACHINE = Machine(2, 80e9, 3.35e12, 989e12, dollars=2.0)


def test_a_hand_example():
    """1,000 bytes/s, a model whose bytes and cache are counted by hand."""
    config = GPTConfig(8, 4, 8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
                       max_position_embeddings=64, tie_word_embeddings=False)  # fmt: skip
    blocks = 2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 8  # q and o, k and v, three of the MLP
    assert weight_bytes(config, "bfloat16") == 2 * num_parameters(config)
    assert weight_bytes(config, "fp8") == blocks + 2 * (num_parameters(config) - blocks)
    cache = 2 * 1 * 2 * 2  # key and value, one head of 2, two bytes
    slow = Machine(1, 10_000, 1_000.0, 1e12, usable=1.0)
    read = 2 * (num_parameters(config) - 32) + 3 * 10 * cache  # without the embedding of 8 x 4
    assert step_seconds(config, slow, "bfloat16", "bfloat16", 1, 3, 10) == pytest.approx(read / 1_000)
    found = serving(config, slow, 8, 4, ("bfloat16",))[0]
    assert found.batch == int((10_000 - 2 * num_parameters(config)) // (12 * cache))
    assert found.tokens_per_second == pytest.approx(found.batch / found.step_seconds)
    busy = Machine(1, 10_000, 1e12, 1_000.0)  # products are the bound
    flops = 2 * (num_parameters(config) - 32) + 4 * 1 * 2 * 2 * 10
    assert step_seconds(config, busy, "bfloat16", "bfloat16", 1, 3, 10) == pytest.approx(3 * flops / 1_000)


def test_two_gpus_of_34b_and_13b():
    """34B in 16 bits leaves one GPU little room; grouped heads make its cache smaller than 13B's."""
    ways = {(each.weights, each.tensor_parallel): each for each in serving(MODELS["34B"], MACHINE, 1024, 256)}
    assert ways["bfloat16", 2].batch > 4 * ways["bfloat16", 1].batch > 0
    assert ways["fp8", 2].alone == pytest.approx(2 * ways["fp8", 1].alone)
    thirteen = serving(MODELS["13B"], MACHINE, 1024, 256)[1]
    assert thirteen.request_bytes > 4 * ways["bfloat16", 2].request_bytes
    assert thirteen.tokens_per_second < ways["bfloat16", 2].tokens_per_second
    cheap = ways["int4", 2]
    assert cheap.dollars_per_million == pytest.approx(2 * 2.0 / 3600 / cheap.tokens_per_second * 1e6)
    seventy = serving(MODELS["70B"], Machine(1, 80e9, 3.35e12, 989e12), 1024, 256, ("bfloat16",))
    assert [(each.batch, each.tokens_per_second, each.dollars_per_million) for each in seventy] == [(0, 0, None)]
    assert " 0" in table(seventy)


def test_what_cannot_be_planned():
    for arguments, message in (
        ({"prompt": 4_000, "new": 200}, "together at most 4096 positions"),
        ({"prompt": 0, "new": 1}, "at least 1"),
        ({"prompt": 1, "new": 1, "weights": ("int3",)}, "'int3' is none of bfloat16, fp8, int4"),
        ({"prompt": 1, "new": 1, "cache": "int8"}, "'int8' is none of bfloat16, fp8"),
    ):
        with pytest.raises(ValueError, match=message):
            serving(MODELS["13B"], MACHINE, **arguments)
    for wrong in ({"gpus": 0}, {"memory": 0}, {"usable": 1.5}, {"dollars": -1}):
        with pytest.raises(ValueError):
            Machine(**{"gpus": 1, "memory": 1.0, "bandwidth": 1.0, "rate": 1.0, **wrong})


def test_the_command(capsys):
    assert main(["plan", "13B", "--dollars", "2.5"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 8 and "$/M" in out and "13B on 2 x H100 of 80 GB" in out
    for arguments, message in (
        (["plan", "9B"], "'9B' is none of 1M"),
        (["plan", "13B", "--gpu", "T4"], "'T4' is none of H100"),
        (["plan"], "the following arguments are required: model; see `llm-serve plan --help`"),
        (["plan", "13B", "--gpus", "x"], "invalid int value: 'x'"),
        (["nowhere/at/all", "--port", "70000"], "--port 70000 must be from 0 to 65535"),
        (["missing-folder"], "missing-folder: no such checkpoint, nor a folder"),
        (["smollm2-135m", "--block_size", "0"], "block_size=0 must be a whole number and at least 1"),
        (["smollm2-135m", "--dtype", "int7"], "--dtype int7 is none of"),
        (["smollm2-135m", "--temperature", "1"], "unrecognized arguments: --temperature 1"),
    ):
        assert main(arguments) == 1
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    assert main([]) == 2 and main(["--help"]) == 0
