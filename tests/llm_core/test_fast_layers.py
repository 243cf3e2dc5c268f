"""The forms with fewer passes compute what the plain ones do, and step aside where they were not meant for."""

from copy import deepcopy

import pytest
import torch
from llm_core.fast import FastAttention, FastRMSNorm, fast
from llm_core.generate import Sampling, generate
from llm_core.model import GPT, GPTConfig, RMSNorm

CONFIG = GPTConfig(97, 48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-3)
IDS = torch.randint(97, (3, 40), generator=torch.Generator().manual_seed(0))
# Places begin again inside a row: a packed batch, with the mask that goes with it.
PACKED = torch.cat([torch.arange(25), torch.arange(15)]).expand(3, -1)


def pair() -> tuple[GPT, GPT]:
    torch.manual_seed(0)
    plain = GPT(CONFIG)
    for module in plain.modules():
        if isinstance(module, RMSNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
    return plain, fast(deepcopy(plain))


def gradients(model: GPT) -> list[torch.Tensor]:
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("positions", [None, PACKED])
def test_outputs_and_gradients(positions):
    plain, quick = pair()
    assert sum(type(module) in (FastRMSNorm, FastAttention) for module in quick.modules()) == 2 * 3 + 1
    outputs = [model(IDS, labels=IDS, position_ids=positions) for model in (plain, quick)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, atol=2e-6, rtol=1e-5)  # sums in another order
    for output in outputs:
        output.loss.backward()
    torch.testing.assert_close(gradients(quick), gradients(plain), atol=1e-7, rtol=1e-4)


def test_fewer_operations():
    """The fast forms were really taken: each pass over memory is an operation less."""
    counts = []
    for model in pair():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            model(IDS, labels=IDS).loss.backward()
        passes = ("aten::mul", "aten::cat", "aten::neg", "aten::pow", "aten::div", "aten::add")
        counts.append(sum(event.count for event in profiler.key_averages() if event.key in passes))
    assert counts[1] < counts[0] / 2


def test_steps_aside():
    """Other formats, generation and a second derivative are the plain forms', or refused."""
    plain, quick = pair()
    with torch.no_grad():
        assert torch.equal(quick(IDS).logits, plain(IDS).logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quick(IDS).logits, plain(IDS).logits)
    half = [deepcopy(model).to(torch.bfloat16) for model in (plain, quick)]
    assert torch.equal(half[1](IDS).logits, half[0](IDS).logits)
    prompt = [IDS[0, :5].tolist()]
    assert generate(quick, prompt, Sampling(6, 0.0)) == generate(plain, prompt, Sampling(6, 0.0))
    assert quick.to("meta")(IDS.to("meta")).logits.device.type == "meta"
    x = torch.randn(2, 3, 8, requires_grad=True)
    (slope,) = torch.autograd.grad(fast(RMSNorm(8, 0.1))(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_state_and_copies():
    plain, quick = pair()
    assert list(quick.state_dict()) == list(plain.state_dict())
    assert isinstance(deepcopy(quick).model.norm, FastRMSNorm)
    assert fast(quick) is quick
