"""What an adapter holds and where it falls behind; the FLOPs of a step; what fits; whether two scores differ."""

from __future__ import annotations

import importlib.util
import json
import math
import sys

import pytest
import torch
from llm_core.config import GPTConfig
from llm_core.losses import causal_loss
from llm_core.model import GPT
from llm_peft.budget import budget
from llm_peft.capacity import adapter_numbers, draw_facts, falls_behind, learn_facts, tokens_at_capacity
from llm_peft.choice import largest_that_fits, score_difference, score_error, step_flops
from llm_peft.lora.config import LoRAConfig
from llm_peft.lora.inject import inject, shapes
from llm_peft.settings import FineTune
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from course.plan.curriculum import find_root

GROUPED = GPTConfig(
    64, 32, 48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2
)


def gpt(r: int = 0) -> GPT:
    torch.manual_seed(0)
    model = GPT(GROUPED)
    if r:
        inject(model, LoRAConfig(r=r))
    return model.train()


def test_an_adapters_numbers_are_those_that_inject_adds():
    model = gpt()
    widths = [tuple(values) for name, values in shapes(model, LoRAConfig(r=1)).items() if name.endswith("A")]
    others = [tuple(values) for name, values in shapes(model, LoRAConfig(r=1)).items() if name.endswith("B")]
    layers = [(outside, inside) for (_, inside), (outside, _) in zip(widths, others, strict=True)]
    trained = sum(each.numel() for each in gpt(3).parameters() if each.requires_grad)
    assert adapter_numbers(3, layers) == trained
    assert tokens_at_capacity(3, layers, 2.0, 8.0) == pytest.approx(trained / 4)
    with pytest.raises(ValueError, match="bits_per_token=0"):
        tokens_at_capacity(1, layers, 1.0, 0)


def test_facts_have_keys_of_their_own_and_any_value():
    facts = draw_facts(16, 4, seed=1)
    assert len({tuple(key) for key in facts.keys.tolist()}) == 16 and facts.bits == 2
    assert set(facts.values.tolist()) == set(range(4))
    assert torch.equal(draw_facts(16, 4, seed=1).values, facts.values)
    with pytest.raises(ValueError, match="4 tokens make 16 keys"):
        draw_facts(17, 4, seed=1)


def test_facts_are_learned_by_what_is_trained_alone():
    facts = draw_facts(12, 64, seed=0)
    model = gpt(4)
    model.model.norm.weight.requires_grad_(True)
    before = {name: each.clone() for name, each in model.named_parameters() if not each.requires_grad}
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    found = learn_facts(model, facts, rate=0.03, steps=120)
    assert found.trained == trained and found.recalled == 1 and found.missing < 1
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters() if name in before)
    assert learn_facts(gpt(4), facts, rate=1e-9, steps=2).missing == pytest.approx(6, abs=1.5)  # guessing among 64


def test_the_place_where_a_curve_crosses():
    assert falls_behind([100, 400], [0.5, 1.5], 1.0) == pytest.approx(200)  # half way on a logarithmic axis
    assert falls_behind([10, 100, 400], [0.0, 1.0, 3.0], 1.0) == pytest.approx(100)
    with pytest.raises(ValueError, match="does not cross"):
        falls_behind([10, 20], [0.0, 0.5], 1.0)
    with pytest.raises(ValueError, match="does not cross"):
        falls_behind([10, 20], [1.5, 2.5], 1.0)


@pytest.mark.parametrize("r", [0, 1, 6])
def test_flops_are_those_that_torch_counts(r):
    ids = torch.zeros(2, 16, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        total, targets = causal_loss(gpt(r)(ids).logits, ids)
        (total / targets).backward()
    assert step_flops(GROUPED, 16, r) * ids.numel() == counter.get_total_flops()


def test_the_largest_that_fits():
    sizes = {
        name: LlamaConfig(vocab_size=64, hidden_size=width, intermediate_size=64, num_hidden_layers=1,
                          num_attention_heads=2, tie_word_embeddings=True)
        for name, width in (("b", 32), ("a", 64), ("c", 16))
    }  # fmt: skip
    settings = FineTune("lora", dtype="float32", library="ours")
    need = {name: budget(config, settings, 1, 32).bytes for name, config in sizes.items()}
    assert largest_that_fits(sizes, settings, need["a"], 1, 32) == "a"
    assert largest_that_fits(sizes, settings, need["a"] - 1, 1, 32) == "b"
    assert largest_that_fits(sizes, settings, need["c"] - 1, 1, 32) is None


def test_the_error_of_a_score_is_that_of_many_draws():
    torch.manual_seed(0)
    draws = (torch.rand(4_000, 200) < 0.3).double().mean(1)
    assert score_error(0.3, 200) == pytest.approx(draws.std().item(), rel=0.05)
    gap, error = score_difference(0.5, 0.4, 100)
    assert gap == pytest.approx(-0.1) and error == pytest.approx(math.sqrt((0.25 + 0.24) / 100))
    for score, questions in ((1.1, 10), (0.5, 0)):
        with pytest.raises(ValueError, match="give a share"):
            score_error(score, questions)


def script(name):
    spec = importlib.util.spec_from_file_location(name, find_root() / f"Module-6/race/{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


def test_the_record_of_capacities(tmp_path, monkeypatch, capsys):
    race, path = script("capacity"), tmp_path / "capacity.json"
    monkeypatch.setattr(race, "train_baby", lambda _: type("Baby", (), {"model": gpt()}))
    monkeypatch.setattr(sys, "argv", ["capacity.py", "--ranks", "1", "--multiples", "4", "8", "--full", "4", "--seeds",
                                      "1", "--steps", "3", "--other-steps", "2", "--record", str(path)])  # fmt: skip
    race.main()
    (run,) = json.loads(path.read_text())
    assert [(row["r"], row["facts"], row["steps"]) for row in run["rows"]] == [
        (1, 4, 3), (1, 8, 3), (2, 8, 2), (2, 16, 2), (2, 64, 2), (0, 4, 3)
    ]  # fmt: skip
    sizes = {row["r"]: row["trained"] for row in run["rows"]}
    assert sizes[2] - sizes[1] == sizes[1] - GROUPED.hidden_size  # the last norm is trained beside both
    assert capsys.readouterr().out.count("bits missing") == 3


def test_the_record_of_equal_memory(tmp_path, monkeypatch, capsys):
    race, path = script("equal_memory"), tmp_path / "memory.json"
    monkeypatch.setattr(race, "WAYS", (race.Way("full", 16), race.Way("qlora", 16, 2)))
    monkeypatch.setattr(sys, "argv", ["equal_memory.py", "--steps", "2", "--seeds", "1", "--rates", "1",
                                      "--base-steps", "4", "--record", str(path)])  # fmt: skip
    race.main()
    (run,) = json.loads(path.read_text())
    assert [(row["method"], row["r"]) for row in run["rows"]] == [("full", 8), ("qlora", 2)]
    for row in run["rows"]:
        assert row["peak"] == pytest.approx(row["predicted_peak"], rel=0.05)
        assert row["after"]["prose"] != row["before"]["prose"]
    assert run["rows"][1]["trained_parameters"] < run["rows"][0]["trained_parameters"]
    assert capsys.readouterr().out.count("bits/byte") == 2
