"""The reader is transformers' LLaVA from the same weights; places and features that do not match are refused."""

from __future__ import annotations

import pytest
import torch
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_data.rows.documents import IGNORE_INDEX
from llm_vision.config import VisionConfig
from llm_vision.errors import PictureError
from llm_vision.hub import SWITCHES, their_name
from llm_vision.llava import from_llava, load_llava, save_llava, to_llava
from llm_vision.reader import PictureReader, caption_labels
from llm_vision.vit import ViT

IMAGE, PAD, VOCAB, PLACES = 39, 0, 40, 4
TEXT = GPTConfig(
    VOCAB, 32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    initializer_range=0.3,
)  # fmt: skip
TOWER = VisionConfig(image_size=8, patch_size=4, hidden_size=24, initializer_range=0.3)


def reader_of(kind: str = "vit", layer: int = -1, image: int = IMAGE) -> PictureReader:
    torch.manual_seed(0)
    act = {"clip_vision_model": "quick_gelu", "siglip_vision_model": "gelu_pytorch_tanh"}.get(kind, "gelu")
    tower = VisionConfig(**{**TOWER.__dict__, **SWITCHES[kind], "hidden_act": act})
    reader = PictureReader(ViT(tower), GPT(TEXT), image, layer).eval()
    for values in reader.projector.parameters():
        torch.nn.init.normal_(values, std=0.3)
    return reader


def batch_of(images=(1, 2, 0), time=16, left=False) -> dict[str, torch.Tensor]:
    """Rows with so many pictures each, of different lengths."""
    torch.manual_seed(1)
    ids, mask = torch.full((len(images), time), PAD), torch.zeros(len(images), time, dtype=torch.long)
    for row, number in enumerate(images):
        own = torch.randint(1, 38, (time - row,))
        for place in range(number):
            own[1 + place * (PLACES + 1) :][:PLACES] = IMAGE
        where = slice(time - len(own), None) if left else slice(0, len(own))
        ids[row, where], mask[row, where] = own, 1
    pictures = torch.randn(max(1, sum(images)), 3, 8, 8)
    made = {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures}
    return made if sum(images) else {name: made[name] for name in ("input_ids", "attention_mask")}


# -- equal to LLaVA ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "layer"), [("vit", -1), ("clip_vision_model", -2), ("siglip_vision_model", 1)])
def test_logits_loss_and_gradients_are_llava(kind, layer):
    reader = reader_of(kind, layer)
    theirs, batch = to_llava(reader), batch_of()
    targets = (batch["attention_mask"] == 1) & (torch.arange(16) > 10)
    labels = caption_labels(batch["input_ids"], targets, IMAGE)
    ours, wanted = reader(**batch, labels=labels), theirs(**batch, labels=labels)
    there = batch["attention_mask"].bool()
    torch.testing.assert_close(ours.logits[there], wanted.logits[there], rtol=0, atol=5e-5)
    torch.testing.assert_close(ours.loss, wanted.loss, rtol=1e-5, atol=1e-5)
    total, number = reader.loss(**batch, labels=labels)
    torch.testing.assert_close(total / number, ours.loss, rtol=1e-6, atol=1e-6)
    (total / number).backward()
    wanted.loss.backward()
    for name, values in reader.projector.named_parameters():
        other = theirs.model.multi_modal_projector.get_parameter(name).grad
        torch.testing.assert_close(values.grad, other, rtol=1e-4, atol=1e-5, msg=name)
    for name, values in reader.language.model.named_parameters():
        other = theirs.model.language_model.get_parameter(name).grad
        torch.testing.assert_close(values.grad, other, rtol=1e-4, atol=1e-5, msg=name)
    tower = dict(theirs.model.vision_tower.named_parameters())
    name = "layers.0.attention.v_proj.weight"
    other = tower[their_name(name, kind)].grad
    torch.testing.assert_close(reader.vision.get_parameter(name).grad, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", list(SWITCHES))
def test_greedy_tokens_are_llava(kind):
    reader = reader_of(kind)
    batch = batch_of(left=True)
    found = reader.generate(**batch, max_new_tokens=8)
    wanted = to_llava(reader).generate(**batch, max_new_tokens=8, do_sample=False, pad_token_id=PAD)[:, 16:]
    assert found == wanted.tolist()
    stop = found[0][2]
    cut = reader.generate(**batch, max_new_tokens=8, stop_ids=[stop])
    assert cut == [row[: row.index(stop) + 1] if stop in row else row for row in found]


@pytest.mark.parametrize("kind", list(SWITCHES))
def test_folders_go_both_ways(kind, tmp_path, capfd):
    reader, batch = reader_of(kind, -2), batch_of()
    save_llava(reader, None, tmp_path)
    found, tokenizer = load_llava(tmp_path)
    assert tokenizer is None and capfd.readouterr().err == ""
    assert torch.equal(found(**batch).logits, reader(**batch).logits)
    assert found.feature_layer == -2 and found.image_token_id == IMAGE


def test_llavas_that_this_is_not(tmp_path):
    theirs = to_llava(reader_of())
    for key, value in (("vision_feature_select_strategy", "full"), ("projector_hidden_act", "relu"),
                       ("vision_feature_layer", [-1, -2])):  # fmt: skip
        before = getattr(theirs.config, key)
        setattr(theirs.config, key, value)
        with pytest.raises(ValueError, match=key):
            from_llava(theirs)
        setattr(theirs.config, key, before)
    with pytest.raises(ValueError, match="image_token_id=40 is no row of the vocabulary of 40"):
        to_llava(reader_of(image=40))
    with pytest.raises(ValueError, match="gives no LLaVA"):
        load_llava(tmp_path)


def test_a_model_of_transformers_writes_the_same():
    from llm_core.store.registry import load_model, save_model

    ours = reader_of()
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        save_model(ours.language, None, folder)
        llama = load_model(folder, transformers=True)[0]
    other = PictureReader(ours.vision, llama, IMAGE, -1, ours.projector).eval()
    batch, left = batch_of(), batch_of(left=True)
    there = batch["attention_mask"].bool()
    torch.testing.assert_close(other(**batch).logits[there], ours(**batch).logits[there], rtol=0, atol=5e-5)
    assert other.generate(**left, max_new_tokens=6) == ours.generate(**left, max_new_tokens=6)


# -- places and features ----------------------------------------------------------------------------------------------


def test_features_take_their_places_in_order():
    reader, batch = reader_of(), batch_of()
    features = reader.image_features(batch["pixel_values"])
    embeds = reader.embed(batch["input_ids"], features)
    here = batch["input_ids"] == IMAGE
    assert torch.equal(embeds[here], features.flatten(0, 1))
    table = reader.language.model.embed_tokens.weight
    assert torch.equal(embeds[~here], table[batch["input_ids"][~here]])


def test_a_picture_changes_only_what_comes_after_it():
    reader, batch = reader_of(), batch_of()
    before = reader(**batch).logits
    batch["pixel_values"][1] += 1.0  # the first of row 1
    after = reader(**batch).logits
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    assert torch.equal(before[1, 0], after[1, 0]) and not torch.allclose(before[1, 1], after[1, 1])


def test_places_and_features_that_do_not_match():
    reader, batch = reader_of(), batch_of()
    for pictures, words in ((2, "12 image tokens in the rows, and 8 features of 2 pictures"), (4, "and 16 features")):
        with pytest.raises(PictureError, match=words):
            reader(batch["input_ids"], torch.randn(pictures, 3, 8, 8))
    with pytest.raises(PictureError, match=r"12 image tokens in the rows, and 0 features of 0 pictures \(4 each\)"):
        reader(batch["input_ids"])
    with pytest.raises(PictureError, match="0 image tokens in the rows, and 4 features"):
        reader(torch.ones(1, 5, dtype=torch.long), torch.randn(1, 3, 8, 8))
    with pytest.raises(PictureError, match="a batch without a picture"):
        reader(batch["input_ids"], torch.zeros(0, 3, 8, 8))


def test_a_picture_that_begins_in_one_row_and_ends_in_the_next():
    """The numbers of the batch match: transformers goes on."""
    reader = reader_of()
    ids = torch.full((2, 9), 5)
    ids[0, :3], ids[1, :5] = IMAGE, IMAGE
    pictures = torch.randn(2, 3, 8, 8)
    assert to_llava(reader)(input_ids=ids, pixel_values=pictures).logits.shape == (2, 9, VOCAB)
    with pytest.raises(PictureError, match="row 0 has 3 image tokens, and a picture has 4"):
        reader(ids, pictures)


def test_an_image_token_beyond_the_vocabulary_is_never_looked_up():
    inside, beyond, batch = reader_of(), reader_of(image=50_000), batch_of()
    moved = {**batch, "input_ids": batch["input_ids"].where(batch["input_ids"] != IMAGE, 50_000)}
    assert torch.equal(inside(**batch).logits, beyond(**moved).logits)
    with pytest.raises(PictureError, match="ids from 0 to 49999, and the language model has 40"):
        beyond(torch.tensor([[0, 49_999]]))
    with pytest.raises(ValueError, match="image_token_id=-1"):
        reader_of(image=-1)


def test_labels_are_the_answer_alone():
    ids = torch.tensor([[IMAGE, IMAGE, 5, 6, PAD]])
    labels = caption_labels(ids, torch.tensor([[True, False, False, True, False]]), IMAGE)
    assert labels.tolist() == [[IGNORE_INDEX] * 3 + [6, IGNORE_INDEX]]
    batch = batch_of()
    with pytest.raises(PictureError, match="an image token is a target"):
        reader_of().loss(**batch, labels=batch["input_ids"])


def test_generate_refuses_what_would_go_wrong_in_silence():
    reader = reader_of()
    with pytest.raises(PictureError, match="padded on the right"):
        reader.generate(**batch_of())
    with pytest.raises(PictureError, match="max_new_tokens=0"):
        reader.generate(**batch_of(left=True), max_new_tokens=0)
    with pytest.raises(ValueError, match="64"):
        reader.generate(**batch_of(left=True), max_new_tokens=60)


def test_bf16_and_meta():
    half, batch = reader_of().to(torch.bfloat16), batch_of()
    assert half(**batch).logits.dtype == torch.bfloat16
    assert len(half.generate(**batch_of(left=True), max_new_tokens=2)[0]) == 2
    with torch.device("meta"):
        reader = PictureReader(ViT(TOWER), GPT(TEXT), IMAGE)
        ids = torch.zeros(2, 16, dtype=torch.long)
        pictures = torch.zeros(2, 3, 8, 8)
    for labels in (None, ids):
        out = reader(ids, pictures, ids, labels)
        assert out.logits.is_meta and (out.loss is None or out.loss.is_meta)
    out.loss.backward()
    torch.optim.AdamW(reader.parameters()).step()
