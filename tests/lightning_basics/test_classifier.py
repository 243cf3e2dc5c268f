"""The block against torch's, padding that may not matter, and impossible sizes."""

import pytest
import torch
from lightning_basics.classifier import ClassifierConfig, LineClassifier, PreNormBlock
from lightning_basics.data import PAD
from torch import nn


def torch_twin(block: PreNormBlock, d_model: int, num_heads: int) -> nn.TransformerEncoderLayer:
    """torch's layer with the block's weights."""
    twin = nn.TransformerEncoderLayer(d_model, num_heads, 4 * d_model, 0.0, batch_first=True, norm_first=True)
    state = block.state_dict()
    mapped = {}
    for kind in ("weight", "bias"):
        mapped[f"self_attn.in_proj_{kind}"] = torch.cat([state[f"self_attn.{p}_proj.{kind}"] for p in "qkv"])
        mapped[f"self_attn.out_proj.{kind}"] = state[f"self_attn.out_proj.{kind}"]
        for name in ("norm1", "norm2"):
            mapped[f"{name}.{kind}"] = state[f"{name}.{kind}"]
        for name in ("linear1", "linear2"):
            mapped[f"{name}.{kind}"] = state[f"feed_forward.{name}.{kind}"]
    twin.load_state_dict(mapped)
    return twin


@pytest.mark.parametrize(("d_model", "num_heads"), [(16, 1), (16, 4), (64, 8)])
def test_block_equals_torch_in_output_and_gradient(d_model: int, num_heads: int) -> None:
    torch.manual_seed(0)
    block = PreNormBlock(d_model, num_heads, dropout=0.0)
    twin = torch_twin(block, d_model, num_heads)
    real = torch.arange(7) < torch.tensor([[7], [4], [1]])
    inputs = torch.randn(3, 7, d_model)
    ours, theirs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    out, expected = block(ours, real[:, None, None, :]), twin(theirs, src_key_padding_mask=~real)
    # float32 sums in another order, some hundred operations deep
    torch.testing.assert_close(out[real], expected[real], atol=1e-5, rtol=1e-5)
    out[real].square().sum().backward()
    expected[real].square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(block.feed_forward.linear1.weight.grad, twin.linear1.weight.grad, atol=1e-4, rtol=1e-4)


def test_padding_does_not_reach_the_logits() -> None:
    torch.manual_seed(0)
    model = LineClassifier(ClassifierConfig(vocab_size=50, d_model=16)).eval()
    short = torch.tensor([[5, 9, 3]])
    padded = torch.tensor([[5, 9, 3, PAD, PAD, PAD]])
    torch.testing.assert_close(model(padded), model(short), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(model(torch.tensor([[5, 3, 9]])), model(short), atol=1e-4)  # order does


def test_a_line_of_padding_alone_stays_finite() -> None:
    model = LineClassifier(ClassifierConfig(vocab_size=50, d_model=16))
    logits = model(torch.full((2, 6), PAD))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("d", "layers", "vocab"), [(16, 1, 50), (64, 2, 4096), (32, 3, 100)])
def test_parameter_count(d: int, layers: int, vocab: int) -> None:
    model = LineClassifier(ClassifierConfig(vocab_size=vocab, d_model=d, num_layers=layers))
    assert sum(p.numel() for p in model.parameters()) == vocab * d + layers * (12 * d * d + 13 * d) + 5 * d + 3


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"d_model": 30, "num_heads": 4}, "d_model=30: must be even and a multiple of num_heads=4; try 28"),
        ({"num_layers": 0}, "num_layers=0: must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"vocab_size": -5}, "vocab_size=-5"),
    ],
)
def test_impossible_sizes(sizes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierConfig(**sizes)
