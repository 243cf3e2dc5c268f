"""Patches are a convolution, and the tower is transformers' ViT, CLIP's and SigLIP's: values, gradients, a step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_vision.config import VisionConfig
from llm_vision.errors import PictureError
from llm_vision.hub import (
    SWITCHES,
    from_transformers,
    kind_of,
    load_vision,
    our_config,
    save_vision,
    their_name,
    to_transformers,
)
from llm_vision.images import Preprocess
from llm_vision.patches import PatchEmbedding, from_conv, patchify, to_conv, unpatchify
from llm_vision.vit import ViT, resize_positions

ACTS = {"vit": "gelu", "clip_vision_model": "quick_gelu", "siglip_vision_model": "gelu_pytorch_tanh"}
KINDS = list(SWITCHES)


def config_of(kind: str = "vit", **changes) -> VisionConfig:
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 24, "initializer_range": 0.3, "hidden_act": ACTS[kind]}
    return VisionConfig(**{**sizes, **SWITCHES[kind], **changes})


def tower(kind: str = "vit", **changes) -> ViT:
    torch.manual_seed(0)
    vision = ViT(config_of(kind, **changes))
    for values in vision.parameters():  # biases and norms too, which begin at 0 and 1
        torch.nn.init.normal_(values, std=0.3)
    return vision


# -- patches ----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_patches_come_back_exactly(batch, channels, rows, columns, p):
    images = torch.randn(batch, channels, rows * p, columns * p)
    cut = patchify(images, p)
    assert cut.shape == (batch, rows * columns, p * p * channels)
    assert torch.equal(unpatchify(cut, p, rows * p, columns * p), images)


def test_patches_run_along_the_rows_and_hold_whole_pixels():
    image = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4)
    first, second = patchify(image, 2)[0, :2]
    assert first.tolist() == [0, 16, 1, 17, 4, 20, 5, 21] and second[:2].tolist() == [2, 18]


def test_a_linear_layer_on_patches_is_a_convolution():
    torch.manual_seed(0)
    embedding, images = PatchEmbedding(config_of()), torch.randn(2, 3, 16, 16)
    conv = embedding.as_convolution()
    ours, theirs = embedding(images), conv(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    grad = torch.randn_like(ours)
    ours.backward(grad)
    theirs.backward(grad)
    torch.testing.assert_close(to_conv(embedding.projection.weight.grad, 4), conv.weight.grad, rtol=0, atol=1e-4)
    assert torch.equal(from_conv(to_conv(embedding.projection.weight, 4)), embedding.projection.weight)


@pytest.mark.parametrize(
    ("shape", "words"),
    [((1, 3, 18, 16), "a height of 18 pixels does not divide into patches of 4; a size of 16 or 20 would do"),
     ((1, 3, 16, 3), "a width of 3 pixels.*a size of 4 would do"), ((1, 3, 0, 16), "a height of 0")],
)  # fmt: skip
def test_sizes_that_do_not_divide(shape, words):
    with pytest.raises(PictureError, match=words):
        patchify(torch.zeros(shape), 4)


def test_patches_of_another_size_are_no_picture():
    with pytest.raises(PictureError, match="16 patches of 4 pixels are no picture of 20 x 16"):
        unpatchify(torch.zeros(1, 16, 48), 4, 20, 16)
    with pytest.raises(PictureError, match="a patch of 47 numbers has not 4 x 4 pixels"):
        unpatchify(torch.zeros(1, 16, 47), 4, 16, 16)


@pytest.mark.parametrize(
    ("images", "words"),
    [(torch.zeros(2, 16, 16, 3), r"channels last; permute\(0, 3, 1, 2\)"),
     (torch.zeros(3, 16, 16), r"add the batch's axis with \[None\]"),
     (torch.zeros(2, 1, 16, 16), "pictures of 1 channels, and the model takes 3"),
     (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "pixels of the type uint8"),
     (torch.zeros(0, 3, 16, 16), "a batch without a picture"),
     (torch.zeros(2, 3, 20, 16), "positions are for 16 x 16"), (torch.zeros(2, 3, 32, 32), "resize_positions=True")],
)  # fmt: skip
def test_what_is_no_batch_of_pictures(images, words):
    with pytest.raises(PictureError, match=words):
        tower()(images)


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"patch_size": 5}, "patch_size=5 does not divide image_size=16; a size of 15 or 20 would do, or patches of 2, 4"),
     ({"hidden_size": 25}, "make it a multiple of 4"), ({"hidden_act": "relu"}, "none of gelu, quick_gelu"),
     ({"patch_size": 0}, "patch_size=0 must be"), ({"num_channels": True}, "num_channels=True"),
     ({"layer_norm_eps": 0.0}, "above 0")],
)  # fmt: skip
def test_sizes_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        config_of(**changes)


# -- the tower --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_gradients_and_a_step_are_transformers(kind):
    vision = tower(kind)
    theirs = to_transformers(vision)
    images, grad = torch.randn(2, 3, 16, 16), torch.randn(2, 16, 24)
    patches = slice(int(vision.config.class_token), None)
    hidden, ours = theirs(images, output_hidden_states=True), vision(images)
    for one, two in zip(ours.hidden_states, hidden.hidden_states, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=2e-5)
    if kind == "clip_vision_model":  # CLIP norms the class token only
        torch.testing.assert_close(vision.pooled(images), hidden.pooler_output, rtol=0, atol=2e-5)
    else:
        torch.testing.assert_close(ours.last_hidden_state, hidden.last_hidden_state, rtol=0, atol=2e-5)
    optimizers = [torch.optim.AdamW(each.parameters(), lr=1e-2) for each in (vision, theirs)]
    (ours.hidden_states[-1][:, patches] * grad).sum().backward()
    (hidden.hidden_states[-1][:, patches] * grad).sum().backward()
    named = dict(theirs.named_parameters())
    for name, values in vision.named_parameters():
        if values.grad is None:
            assert name.startswith("layernorm.")  # behind what was read
            continue
        other = named[their_name(name, kind)].grad
        other = from_conv(other) if other.ndim == 4 else other.reshape(values.shape)
        torch.testing.assert_close(values.grad, other, rtol=1e-4, atol=2e-4, msg=name)
    for optimizer in optimizers:
        optimizer.step()
    after = theirs(images, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(vision(images).hidden_states[-1], after, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(24, 24), (16, 32), (8, 12)])
def test_positions_of_another_size_are_transformers(kind, shape):
    vision, images = tower(kind).eval(), torch.randn(1, 3, *shape)
    theirs = to_transformers(vision)(images, interpolate_pos_encoding=True, output_hidden_states=True)
    found = vision(images, resize_positions=True).hidden_states[-1]
    torch.testing.assert_close(found, theirs.hidden_states[-1], rtol=0, atol=2e-5)


def test_positions_of_the_same_size_stay_bit_for_bit():
    positions = torch.randn(1, 17, 24)
    assert resize_positions(positions, 4, 4, True) is positions
    wide = resize_positions(positions, 4, 8, True)
    assert wide.shape == (1, 33, 24) and torch.equal(wide[:, 0], positions[:, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_folders_go_both_ways(kind, tmp_path, capfd):
    vision = tower(kind).eval()
    save_vision(vision, tmp_path, Preprocess(16))
    found = load_vision(tmp_path)
    assert kind_of(found.config) == kind
    for name, values in vision.state_dict().items():
        assert torch.equal(found.state_dict()[name], values), name
    assert capfd.readouterr().err == ""


def test_weights_without_a_place_are_refused_by_name(tmp_path):
    from transformers import SiglipVisionConfig, SiglipVisionModel, ViTConfig, ViTModel

    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    for config, kind, part in ((ViTConfig, ViTModel, "pooler"), (SiglipVisionConfig, SiglipVisionModel, "head")):
        theirs = kind(config(**sizes)).eval()
        with pytest.raises(ValueError, match=rf'{part}\..*pass without=\["{part}"\]'):
            from_transformers(theirs)
        theirs.save_pretrained(tmp_path / part)
        with pytest.raises(ValueError, match=rf"{part}\."):
            load_vision(tmp_path / part)
        vision, images = load_vision(tmp_path / part, without=[part]), torch.randn(1, 3, 16, 16)
        torch.testing.assert_close(
            vision(images).last_hidden_state, theirs(images).last_hidden_state, rtol=0, atol=2e-5
        )


def test_other_encoders_are_refused_with_the_key(tmp_path):
    from transformers import BertConfig, CLIPVisionConfig, ViTConfig

    for config, words in (
        (ViTConfig(hidden_dropout_prob=0.1), "hidden_dropout_prob=0.1"),
        (ViTConfig(image_size=[16, 32]), r"image_size=\[16, 32\]"), (ViTConfig(hidden_act="relu"), "hidden_act='relu'"),
        (CLIPVisionConfig(attention_dropout=0.1), "attention_dropout=0.1"), (BertConfig(), "is a bert"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            our_config(config)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="gives no picture encoder: it is a bert"):
        load_vision(tmp_path)
    with pytest.raises(ValueError, match="gives no picture encoder"):
        load_vision(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no encoder of transformers has class_token=False"):
        kind_of(config_of(class_token=False, patch_bias=False))
    with pytest.raises(ValueError, match="preprocess makes pictures of 8 pixels, and the model takes 16"):
        save_vision(tower(), tmp_path, Preprocess(8))


def test_a_layer_that_is_not_there():
    vision, images = tower(), torch.randn(1, 3, 16, 16)
    assert torch.equal(vision.patch_features(images, 2), vision.patch_features(images, -1))
    with pytest.raises(PictureError, match="layer=3 of 2 blocks; take one from -3 to 2"):
        vision.patch_features(images, 3)


def test_one_channel_bf16_and_meta():
    grey = ViT(config_of(num_channels=1))
    assert grey.pooled(torch.randn(2, 1, 16, 16)).shape == (2, 24)
    half = tower().to(torch.bfloat16)
    out = half.pooled(torch.randn(2, 3, 16, 16))
    assert out.dtype == torch.bfloat16
    with torch.device("meta"):
        vision, images = ViT(config_of()), torch.zeros(2, 3, 24, 24)
    assert vision(images, resize_positions=True).last_hidden_state.is_meta
