"""Rows, frozen halves, checkpoints, controls and costs; and a small reader that learns to read."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_data.rows.documents import IGNORE_INDEX
from llm_precision.meters import count_flops
from llm_serve.cache.sizes import kv_bytes_per_token
from llm_vision import costs, evaluate, recipes
from llm_vision.config import VisionConfig
from llm_vision.contrastive import similarity
from llm_vision.data import (
    Pictures,
    Table,
    batches,
    blank,
    brief,
    encode,
    image_token,
    joined,
    prompts,
    rows,
    shape_splits,
    shuffled,
    word_tokenizer,
)
from llm_vision.drawn.shapes import draw_specs
from llm_vision.errors import PictureError
from llm_vision.language import features
from llm_vision.projector import Projector
from llm_vision.reader import PictureReader
from llm_vision.recipes import Run, fit, shape_words
from llm_vision.records import prefill
from llm_vision.training import CLIPTrainer, ReaderModule, VisionClassifier
from llm_vision.vit import ViT

from course.record import Setting

TOWER = VisionConfig(image_size=32, patch_size=16, hidden_size=32, num_hidden_layers=1, initializer_range=0.1)
CLASSES = (2, 6, 5, 5)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures.of(draw_specs(256, 0))


def reader_of(seed: int = 0) -> PictureReader:
    torch.manual_seed(seed)
    tokenizer = shape_words()
    config = GPTConfig(
        len(tokenizer), 32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64,
        initializer_range=0.1, attention_dropout=0.1,
    )  # fmt: skip
    return PictureReader(ViT(TOWER), GPT(config), image_token(tokenizer)).eval()


def table_of(pictures: Pictures) -> Table:
    return joined(pictures, rows(shape_words(), pictures.captions, 4))


# -- rows -------------------------------------------------------------------------------------------------------------


def test_a_rows_targets_are_its_answer_and_its_end():
    tokenizer = word_tokenizer(["what ?", "a red ring", "blue"])
    image, eos, pad = image_token(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id
    assert len({image, eos, pad}) == 3 and image < len(tokenizer)
    made = rows(tokenizer, ["a red ring", "blue"], 2, ["what ?", "what ?"])
    asked = encode(tokenizer, ["what ?"])[0]
    answers = encode(tokenizer, ["a red ring", "blue"])
    assert made["input_ids"].tolist() == [
        [image, image, *asked, *answers[0], eos], [image, image, *asked, *answers[1], eos, pad, pad]
    ]  # fmt: skip
    assert made["labels"].tolist() == [
        [IGNORE_INDEX] * 4 + [*answers[0], eos],
        [IGNORE_INDEX] * 4 + [*answers[1], eos] + [IGNORE_INDEX] * 2,
    ]
    assert made["attention_mask"].tolist() == [[1] * 8, [1] * 6 + [0] * 2]
    left = prompts(tokenizer, 2, 2, ["what ?", "a"])
    assert left["input_ids"].tolist()[1] == [pad, image, image, *encode(tokenizer, ["a"])[0]]
    assert left["attention_mask"].tolist() == [[1] * 4, [0, 1, 1, 1]]
    assert tokenizer.decode(answers[0]) == "a red ring"


def test_rows_that_cannot_be():
    tokenizer = shape_words()
    with pytest.raises(ValueError, match="no token for pink"):
        rows(tokenizer, ["a pink ring"], 4)
    with pytest.raises(PictureError, match="1 questions and 2 answers"):
        rows(tokenizer, ["a", "a"], 4, ["a"])
    with pytest.raises(PictureError, match="nothing to continue"):
        prompts(tokenizer, 2, 0)
    with pytest.raises(PictureError, match="one 2, two 3"):
        Table(one=torch.zeros(2), two=torch.zeros(3))
    with pytest.raises(ValueError, match="no word"):
        word_tokenizer([" "])


def test_splits_share_no_picture_and_training_shows_no_unseen_pair():
    splits = shape_splits(60, 20, 20)
    seen = [set(part.captions) for part in (splits.train, splits.test, splits.unseen, splits.unseen_pair)]
    assert not (seen[0] | seen[1]) & (seen[2] | seen[3]) and not seen[2] & seen[3]
    every = torch.cat([splits.train.pixel_values, splits.test.pixel_values]).flatten(1)
    assert len(every.unique(dim=0)) == 80
    assert all("blue circle" in each or "yellow square" in each or "green ring" in each for each in seen[3])


def test_batches_are_shuffled_anew_and_complete_in_order(pictures):
    table = Table(number=torch.arange(10))
    loader = batches(table, 4, seed=0)
    epochs = [torch.cat([batch["number"] for batch in loader]) for _ in range(2)]
    assert all(len(each.unique()) == 8 for each in epochs) and not torch.equal(*epochs)
    again = batches(table, 4, seed=0)
    assert torch.equal(torch.cat([batch["number"] for batch in again]), epochs[0])
    assert [batch["number"].tolist() for batch in batches(table, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_controls_change_every_picture_and_no_caption(pictures):
    other, grey = shuffled(pictures), blank(pictures)
    assert other.captions == grey.captions == pictures.captions
    same = (other.pixel_values == pictures.pixel_values).flatten(1).all(dim=1)
    assert not same.any() and len(grey.pixel_values.unique(dim=0)) == 1
    assert torch.equal(other.pixel_values.sum(dim=0).round(), pictures.pixel_values.sum(dim=0).round())
    assert grey.pixel_values[0].flatten(1).std(dim=1).max() == 0


def test_a_brief_caption_tells_no_place(pictures):
    short = brief(pictures)
    assert {len(each.split()) for each in short.captions} == {4}
    assert all(one.startswith(two) for one, two in zip(pictures.captions, short.captions, strict=True))
    assert short.pixel_values is pictures.pixel_values


# -- training ---------------------------------------------------------------------------------------------------------


def test_only_what_is_not_frozen_is_trained_and_saved(pictures, tmp_path):
    reader = reader_of()
    before = {name: values.clone() for name, values in reader.state_dict().items()}
    module = ReaderModule(reader, learning_rate=1e-2, warmup_steps=0)
    trainer = pl.Trainer(
        max_steps=5, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    recipes.quiet()
    trainer.fit(module.train(), batches(table_of(pictures), 16, 0))
    assert not reader.language.training and not reader.vision.training and reader.projector.training
    for name, values in reader.state_dict().items():
        assert torch.equal(values, before[name]) != name.startswith("projector."), name
    held = {id(each) for group in trainer.optimizers[0].param_groups for each in group["params"]}
    assert held == {id(each) for each in reader.projector.parameters()}
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    kept = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert set(kept["state_dict"]) == {f"reader.projector.{name}" for name in reader.projector.state_dict()}
    again = ReaderModule(reader_of())
    again.on_load_checkpoint(kept)
    again.load_state_dict(kept["state_dict"], strict=again.strict_loading)
    assert torch.equal(again.reader.projector.linear_1.weight, reader.projector.linear_1.weight)
    with pytest.raises(ValueError, match=r"the frozen parts \(language, vision\) are not those"):
        ReaderModule(reader_of(seed=1)).on_load_checkpoint(kept)
    with pytest.raises(ValueError, match=r"trained with frozen=\['language', 'vision'\]"):
        ReaderModule(reader_of(), ("language",)).on_load_checkpoint(kept)
    del kept["state_dict"]["reader.projector.linear_1.bias"]
    with pytest.raises(ValueError, match=r"lacks reader.projector.linear_1.bias"):
        ReaderModule(reader_of()).on_load_checkpoint(kept)


def test_a_frozen_part_that_changes_is_told(pictures):
    reader = reader_of()
    module = ReaderModule(reader)

    class Spoil(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            with torch.no_grad():
                reader.language.lm_head.weight[0, 0] += 1e-3

    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[Spoil()],
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=r"a frozen part \(language, vision\) changed"):
        trainer.fit(module.train(), batches(table_of(pictures), 16, 0))


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: ReaderModule(reader_of(), ("tower",)), "name some of vision, projector, language"),
     (lambda: ReaderModule(reader_of(), ("vision", "projector", "language")), "every part is frozen"),
     (lambda: ReaderModule(reader_of(), learning_rate=0), "learning_rate=0 must be above 0"),
     (lambda: VisionClassifier(ViT(TOWER), (5, 1)), "two values at least"),
     (lambda: CLIPTrainer(ViT(TOWER), reader_of().language, kind="dino"), "neither clip nor siglip")],
)  # fmt: skip
def test_settings_that_cannot_be(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_loss_that_is_no_number_stops_before_the_step(pictures):
    module = VisionClassifier(ViT(TOWER), CLASSES)
    pixels = pictures.pixel_values.clone()
    pixels[:] = float("nan")
    before = module.head.weight.clone()
    with pytest.raises(RuntimeError, match="step 1: the loss is nan; the step is not taken"):
        fit(module, Table(pixel_values=pixels, classes=pictures.classes), Run(3, 16))
    assert torch.equal(module.head.weight, before)


def test_a_classifier_learns_to_name_colours(pictures):
    torch.manual_seed(0)
    module = VisionClassifier(ViT(TOWER), CLASSES, learning_rate=3e-3, warmup_steps=5)
    losses = fit(module, Table(pixel_values=pictures.pixel_values, classes=pictures.classes), Run(80, 32))
    assert len(losses) == 80 and losses[-1] < 0.7 * losses[0]
    found = evaluate.classified(module, pictures)
    assert found["1"].value > 0.8 and set(found) == {"0", "1", "2", "3", "all"}
    assert found["all"].value <= min(found[str(place)].value for place in range(4))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_pairs_come_together(pictures, kind):
    torch.manual_seed(0)
    module = CLIPTrainer(ViT(TOWER), reader_of().language, dim=16, kind=kind, learning_rate=3e-3, warmup_steps=5)
    made = rows(shape_words(), pictures.captions, 0)
    table = Table(
        pixel_values=pictures.pixel_values, input_ids=made["input_ids"], attention_mask=made["attention_mask"]
    )
    losses = fit(module, table, Run(60, 32))
    assert losses[-1] < 0.8 * losses[0]
    batch = next(iter(batches(table, 32)))
    images, texts = module.image_embeds(batch["pixel_values"]), module.text_embeds(
        batch["input_ids"], batch["attention_mask"]
    )  # fmt: skip
    own = similarity(images, texts).detach()
    if kind == "clip":  # SigLIP's bias begins at -10: its first steps draw all together
        assert float(own.diagonal().mean()) > float(own.mean()) + 0.2
    # A text is its last token, whatever padding stands behind it.
    wider = (
        torch.nn.functional.pad(batch["input_ids"], (0, 3)),
        torch.nn.functional.pad(batch["attention_mask"], (0, 3)),
    )
    torch.testing.assert_close(module.text_embeds(*wider), texts, rtol=0, atol=1e-5)


def test_recipes_train_a_reader_and_keep_its_halves():
    tokenizer, some = shape_words(), Pictures.of(draw_specs(64, 0))
    short = Run(3, 16)
    vision = recipes.pretrain_vision(some, short)
    language = recipes.pretrain_language(tokenizer, short, number=64)
    recipes.pretrain_pairs(some, tokenizer, short)
    module, losses = recipes.train_projector(vision.vision, language, tokenizer, some, short)
    assert len(losses) == 3 and module.reader.tokens_per_image == 16
    original = recipes.fit
    try:
        recipes.fit = lambda *_: pytest.fail("trained twice")
        again = recipes.pretrain_vision(some, short)
        assert torch.equal(again.head.weight, vision.head.weight)
        with pytest.raises(pytest.fail.Exception, match="trained twice"):
            recipes.pretrain_vision(some, Run(4, 16))
    finally:
        recipes.fit = original
    table = evaluate.with_controls(module.reader, tokenizer, some[:16], max_new_tokens=3)
    assert list(table) == ["picture", "shuffled", "no image", "text prior"]


def test_facts_say_every_word_of_the_caption():
    caption = "a small red circle at the top left"
    (made,) = recipes.facts([caption], 16, 0)
    assert len(made.split()) == 16 and set(made.split()) == {"small", "red", "circle", "top", "left"}


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_scores_of_captions():
    wanted = ["a red ring", "a blue ring"]
    assert evaluate.exact_match(["a red ring", "a blue"], wanted).value == 0.5
    assert evaluate.attribute_accuracy(["a red ring", "a blue"], wanted) == pytest.approx(5 / 6)
    assert evaluate.text_prior(["one", "two", "one"]) == "one"
    with pytest.raises(ValueError, match="1 answers to 2 pictures"):
        evaluate.exact_match(["a"], wanted)


def test_a_reader_of_pixels_loses_its_pictures_in_the_controls(pictures):
    """A reader that knows the picture is right on it alone: the controls are what they say."""
    tokenizer, reader = shape_words(), reader_of()
    known = {tuple(each[:, ::8, ::8].flatten().tolist()): text for each, text in
             zip(pictures.pixel_values, pictures.captions, strict=True)}  # fmt: skip

    def generate(input_ids, pixel_values=None, attention_mask=None, max_new_tokens=20, stop_ids=()):
        if pixel_values is None:
            assert (input_ids != image_token(tokenizer)).all()
            return [[stop_ids[0]] for _ in input_ids]
        texts = [known.get(tuple(each[:, ::8, ::8].flatten().tolist()), "") for each in pixel_values]
        return [[*ids, stop_ids[0]] for ids in encode(tokenizer, texts)]

    reader.generate = generate
    found = evaluate.with_controls(reader, tokenizer, pictures)
    assert found["picture"].value == 1.0
    assert found["shuffled"].value < 0.05 and found["no image"].value == found["text prior"].value == 0.0


# -- costs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("size", "patch", "looked"), [(32, 8, None), (32, 4, None), (32, 8, 64)])
def test_the_towers_formulas_are_counted(class_token, size, patch, looked):
    config = VisionConfig(size, patch, hidden_size=48, num_hidden_layers=3, class_token=class_token)
    with torch.device("meta"):
        vision, images = ViT(config), torch.zeros(1, 3, looked or size, looked or size)
    counted = count_flops(lambda: vision(images, resize_positions=True))
    assert counted == costs.vision_flops(config, looked)
    assert sum(each.numel() for each in vision.parameters()) == costs.vision_parameters(config)
    assert vision(images, True).last_hidden_state.shape[1] == costs.image_tokens(looked or size, patch) + class_token


def test_the_language_models_formulas_are_counted():
    config = GPTConfig(50, 32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    with torch.device("meta"):
        model, embeds = GPT(config), torch.zeros(1, 20, 32)
        projector, states = Projector(24, 32), torch.zeros(1, 16, 24)
    assert count_flops(lambda: features(model, embeds)) == costs.prefill_flops(config, 20)
    assert count_flops(lambda: projector(states)) == costs.projector_flops(24, 32, 16)
    assert costs.image_kv_bytes(config, 16) == 16 * kv_bytes_per_token(config) == 16 * 2 * 2 * 2 * 8 * 2
    assert costs.image_tokens(336, 14) == 576
    with pytest.raises(ValueError, match="patch_size=14 does not divide image_size=335"):
        costs.image_tokens(335, 14)


def test_rows_of_a_gpu():
    found = list(prefill.image_tokens(Setting("cpu", toy=True)))
    assert [row["image_tokens"] for row in found] == [0, 256, 576] and not any("missing" in row for row in found)
    assert all(row["flops"] > 0 and row["seconds"] > 0 for row in found)
