"""The contrastive losses are transformers', values and gradients; and what they are without knowledge."""

from __future__ import annotations

import math

import pytest
import torch
from llm_vision.contrastive import clip_loss, retrieval_accuracy, siglip_loss, similarity
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

HALF = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**HALF, "vocab_size": 20, "max_position_embeddings": 8}
VISION = {**HALF, "image_size": 8, "patch_size": 4}


def theirs(kind: str):
    torch.manual_seed(0)
    options = {"text_config": TEXT, "vision_config": VISION}
    if kind == "clip":
        model = CLIPModel(CLIPConfig(**options, projection_dim=12))
    else:
        model = SiglipModel(SiglipConfig(**options))
    for name, values in model.named_parameters():
        torch.nn.init.normal_(values, std=0.5 if "logit" in name else 0.3)
    return model


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_losses_and_gradients_are_transformers(kind):
    model = theirs(kind)
    ids, pictures = torch.randint(2, 20, (5, 8)), torch.randn(5, 3, 8, 8)
    out = model(input_ids=ids, pixel_values=pictures, return_loss=True)
    for each in (out.image_embeds, out.text_embeds):
        each.retain_grad()
    out.loss.backward()
    images, texts = (each.detach().clone().requires_grad_() for each in (out.image_embeds, out.text_embeds))
    learned = [model.logit_scale] if kind == "clip" else [model.logit_scale, model.logit_bias]
    scalars = [each.detach().reshape(()).clone().requires_grad_() for each in learned]
    loss = (clip_loss if kind == "clip" else siglip_loss)(images, texts, *scalars)
    torch.testing.assert_close(loss, out.loss, rtol=1e-6, atol=1e-6)
    loss.backward()
    for one, other in zip(scalars, learned, strict=True):
        torch.testing.assert_close(one.grad, other.grad.reshape(()), rtol=1e-6, atol=1e-6)
    # Theirs are of unit length already. Ours take any length, so that a gradient along the vector is no part of them.
    for one, other in ((images, out.image_embeds), (texts, out.text_embeds)):
        along = (other.grad * other).sum(dim=-1, keepdim=True) * other
        torch.testing.assert_close(one.grad, (other.grad - along).detach(), rtol=1e-5, atol=1e-6)


def test_lengths_do_not_count_and_pairs_must_be_pairs():
    torch.manual_seed(0)
    images, texts = torch.randn(2, 6, 4)
    for loss, more in ((clip_loss, ()), (siglip_loss, (torch.tensor(-1.0),))):
        found = loss(images * 7, texts * 0.1, torch.tensor(1.0), *more)
        torch.testing.assert_close(found, loss(images, texts, torch.tensor(1.0), *more))
    with pytest.raises(ValueError, match=r"\(6, 4\) and of texts \(5, 4\)"):
        similarity(images, texts[:5])


def test_without_knowledge_the_losses_are_known():
    same = torch.ones(8, 3)
    scale = torch.tensor(2.0)
    assert float(clip_loss(same, same, scale)) == pytest.approx(math.log(8), abs=1e-6)
    logit = math.exp(2.0) - 10.0
    wanted = math.log1p(math.exp(-logit)) + 7 * math.log1p(math.exp(logit))
    assert float(siglip_loss(same, same, scale, torch.tensor(-10.0))) == pytest.approx(wanted, rel=1e-5)


def test_retrieval_of_pairs_and_of_none():
    own = torch.eye(6)
    assert retrieval_accuracy(own, own) == 1.0 and retrieval_accuracy(own, own.roll(1, dims=0)) == 0.0
    assert (
        float(clip_loss(own, own, torch.tensor(5.0)))
        < 1e-6
        < float(clip_loss(own, own.roll(1, dims=0), torch.tensor(5.0)))
    )
