"""A projector that says words before it is heard, with a small language model in the real one's place."""

from __future__ import annotations

import pytest
import torch
from llm_core.config import GPTConfig
from llm_core.model import GPT
from llm_vision import real
from llm_vision.data import Pictures, word_tokenizer
from llm_vision.drawn.shapes import draw_specs
from llm_vision.reader import PictureReader
from llm_vision.recipes import Run
from llm_vision.vit import VisionConfig, ViT


@pytest.fixture
def parts():
    torch.manual_seed(0)
    pictures = Pictures.of(draw_specs(64, 0))
    tokenizer = word_tokenizer([*pictures.captions, real.BEGIN, real.QUESTION])
    tower = VisionConfig(32, 16, hidden_size=16, num_hidden_layers=1, initializer_range=0.2, class_token=False)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "max_position_embeddings": 32}
    return ViT(tower), GPT(GPTConfig(len(tokenizer), **sizes)), tokenizer, pictures


def test_vectors_that_are_the_words_cost_least():
    torch.manual_seed(0)
    words = torch.randn(6, 32)
    wanted = torch.zeros(1, 6)
    wanted[0, :2] = 1
    said = words[[0, 1, 0, 1]][None]
    best = real.words_loss(said, words, wanted)
    assert float(best) == pytest.approx(0.693, abs=0.05)  # each of two words has half of the vectors
    for worse in (words[[0, 0, 0, 0]][None], words[[2, 3, 4, 5]][None], 3 * said):
        assert float(real.words_loss(worse, words, wanted)) > float(best) + 1


def test_halves_stay_and_both_stages_learn(parts):
    vision, language, tokenizer, pictures = parts
    before = [each.clone() for half in (vision, language) for each in half.state_dict().values()]
    module, said, heard = real.train_real_projector(
        vision, language, tokenizer, pictures, Run(60, 32, 5e-3), Run(12, 16, 1e-2)
    )
    after = [each for half in (vision, language) for each in half.state_dict().values()]
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))
    assert said[-1] < said[0] - 0.2 and heard[-1] < heard[0] and len(heard) == 12
    assert module.frozen == ("language", "vision")


def test_a_word_of_several_tokens_is_refused(parts):
    vision, language, _, pictures = parts

    class Letters:
        def __call__(self, texts, **options):
            return {"input_ids": [list(range(len(text))) for text in texts]}

    reader = PictureReader(vision, language, 99)
    with pytest.raises(ValueError, match=r"blue, bottom.*more than one token"):
        real.say_words(reader, Letters(), pictures)
