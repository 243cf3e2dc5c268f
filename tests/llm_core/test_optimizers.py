"""AdamW and its L2 sibling against torch's."""

import subprocess
import sys

import pytest
import torch
from llm_core.model import GPT, GPTConfig
from llm_core.optimizers import AdamW, parameter_groups, rate_factor


def train(make, steps=50):
    torch.manual_seed(1)
    layer = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    optimizer = make(layer)
    draw = torch.Generator().manual_seed(2)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(4, 5, generator=draw)).pow(2).sum().backward()
        optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("options", [{}, {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.5}])
def test_fifty_steps_are_torchs(l2, options):
    options = {"lr": 1e-2, "weight_decay": 0.1, **options}
    theirs = torch.optim.Adam if l2 else torch.optim.AdamW
    ours, _ = train(lambda layer: AdamW(layer.parameters(), l2=l2, **options))
    expected, _ = train(lambda layer: theirs(layer.parameters(), **options))
    for (name, a), b in zip(ours.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_l2_is_another_algorithm():
    decoupled, _ = train(lambda layer: AdamW(layer.parameters(), lr=1e-2, weight_decay=0.1))
    coupled, _ = train(lambda layer: AdamW(layer.parameters(), lr=1e-2, weight_decay=0.1, l2=True))
    assert (decoupled[0].weight - coupled[0].weight).abs().max() > 1e-2


def test_a_stored_state_goes_on():
    whole, _ = train(lambda layer: AdamW(layer.parameters(), lr=1e-2))
    torch.manual_seed(1)
    layer = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    draw = torch.Generator().manual_seed(2)
    state = AdamW(layer.parameters(), lr=1e-2).state_dict()
    for _ in range(2):
        optimizer = AdamW(layer.parameters())
        optimizer.load_state_dict(state)
        for _ in range(25):
            optimizer.zero_grad()
            layer(torch.randn(4, 5, generator=draw)).pow(2).sum().backward()
            optimizer.step()
        state = optimizer.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), whole.parameters(), strict=True))


def test_parameters_without_a_gradient_stay():
    layer = torch.nn.Linear(3, 3)
    before = layer.weight.clone()
    AdamW(layer.parameters()).step()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("tied", [True, False])
def test_matrices_decay_and_nothing_else(tied):
    model = GPT(GPTConfig(50, hidden_size=32, tie_word_embeddings=tied))
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    decay, rest = parameter_groups(model, 0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert decay["weight_decay"] == 0.3 and rest["weight_decay"] == 0
    assert all("norm" in names[id(parameter)] for parameter in rest["params"])
    assert not any("norm" in names[id(parameter)] for parameter in decay["params"])
    together = [id(parameter) for parameter in (*decay["params"], *rest["params"])]
    assert sorted(together) == sorted(key for key, name in names.items() if "layers.0.self_attn.q_proj" not in name)


@pytest.mark.parametrize(("warmup", "steps", "least"), [(0, 10, 0.1), (1, 7, 0.0), (30, 300, 0.25), (99, 100, 1.0)])
def test_the_rates_are_those_of_transformers_and_stay_low_after_the_end(warmup, steps, least):
    from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup_lr_rate as theirs

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    expected = theirs(optimizer, warmup, steps, min_lr_rate=least).lr_lambdas[0]
    assert [rate_factor(step, warmup, steps, least) for step in range(steps)] == [expected(i) for i in range(steps)]
    assert rate_factor(steps - 1, warmup, steps, least) == pytest.approx(least)
    assert {rate_factor(step, warmup, steps, least) for step in range(steps, 3 * steps)} == {expected(steps - 1)}


def test_a_training_step_imports_neither_peft_nor_bitsandbytes():
    """Seconds for every process that trains."""
    code = (
        "import sys, pytorch_lightning as pl, torch\nfrom llm_core import BabyGPT, GPTConfig\n"
        "rows = [{'input_ids': torch.arange(8), 'labels': torch.arange(8)}] * 4\n"
        "trainer = pl.Trainer(max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,"
        " enable_model_summary=False, accelerator='cpu')\n"
        "trainer.fit(BabyGPT(GPTConfig(9, 16), warmup_steps=1), torch.utils.data.DataLoader(rows, batch_size=2))\n"
        "assert not {'peft', 'bitsandbytes', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
