"""A tensor that is made on the CPU, whatever device the model is on, is found without a GPU.

On the `meta` device tensors have shapes and no values; an operation between it and the CPU raises.
"""

import pytest
import torch
from llm_core.families.encoders import Encoder, EncoderDecoder
from llm_core.losses import causal_loss, chunked_causal_loss
from llm_core.model import GPT, GPTConfig, KeyValueCache
from llm_core.optimizers import AdamW, parameter_groups
from torch.optim import AdamW as TorchAdamW

CONFIG = GPTConfig(64, 32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def ids(rows=2, time=8):
    return torch.zeros(rows, time, dtype=torch.long, device="meta")


@pytest.fixture
def model():
    with torch.device("meta"):
        return GPT(CONFIG)


def test_the_trap_springs(model):
    """What this file rests on: ids, masks, positions and labels that were left on the CPU each raise."""
    here = torch.zeros(2, 8, dtype=torch.long)
    for wrong in (
        {"input_ids": here},
        {"input_ids": ids(), "position_ids": here},
        {"input_ids": ids(), "attention_mask": here},
        {"input_ids": ids(), "labels": here},
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            model(**wrong)


@pytest.mark.parametrize("given", ["nothing", "labels", "position_ids", "attention_mask", "both"])
def test_a_forward_pass(given, model):
    extra = {name: ids() for name in ("labels", "position_ids", "attention_mask") if given in (name, "both")}
    out = model(ids(), **extra)
    assert out.logits.is_meta and out.logits.shape == (2, 8, 64)
    assert out.loss is None or out.loss.is_meta


def test_steps_with_a_cache(model):
    """As `generate` takes them: a prompt with padding, then a token at a time."""
    cache, mask = KeyValueCache(), ids()
    model(ids(), attention_mask=mask, cache=cache)
    for time in (9, 10):
        assert model(ids(2, 1), attention_mask=ids(2, time), cache=cache).logits.is_meta
    assert len(cache) == 10


def test_drawing_a_token():
    from llm_core.generate import Sampling, adjust

    how = Sampling(temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.2)
    logits = torch.zeros(2, 64, device="meta")
    assert adjust(logits, ids(), how).is_meta


@pytest.mark.parametrize("loss", ["whole", "chunked"])
@pytest.mark.parametrize("optimizer", [AdamW, TorchAdamW])
def test_a_training_step(optimizer, loss, model):
    groups = parameter_groups(model, 0.1)
    stepping = optimizer(groups, lr=1e-3)
    if loss == "whole":
        total, targets = causal_loss(model(ids()).logits, ids())
    else:
        total, targets = chunked_causal_loss(model.features(ids()), model.lm_head.weight, ids(), 4)
    (total / targets.clamp(min=1)).backward()
    stepping.step()
    assert all(weight.is_meta and weight.grad is not None and weight.grad.is_meta for weight in model.parameters())
    assert all(values.is_meta for state in stepping.state.values() for name, values in state.items() if name != "step")


def test_the_other_families():
    with torch.device("meta"):
        encoder, both = Encoder(CONFIG), EncoderDecoder(CONFIG)
    out = encoder(ids(), labels=ids(), position_ids=ids(), attention_mask=ids())
    assert out.logits.is_meta and out.loss.is_meta
    out = both(ids(), labels=ids(2, 5), attention_mask=ids())
    assert out.logits.is_meta and out.loss.is_meta
