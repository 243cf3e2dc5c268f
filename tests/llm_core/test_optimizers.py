"""AdamW and its L2 sibling against torch's."""

import pytest
import torch
from llm_core.model import GPT, GPTConfig
from llm_core.optimizers import AdamW, parameter_groups


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
