"""What is kept in the cache: made once, made again where it is damaged, and never mixed up."""

from __future__ import annotations

import pytest
import torch
from llm_rag import kept
from llm_rag.encoders import bi_encoder
from llm_rag.encoders.bi_encoder import BiEncoderConfig
from llm_rag.kept import kept_vectors
from llm_rag.pairs import Pair, split


class Counting:
    """Gives each text its length as a vector, and counts how often it is asked."""

    def __init__(self, name="counting"):
        self.name, self.dim, self.calls = name, 2, 0

    def encode(self, texts):
        self.calls += 1
        return torch.tensor([[float(len(text)), 1.0] for text in texts])


def test_vectors_are_kept_for_an_encoder_and_its_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    encoder = Counting()
    first = kept_vectors(encoder, ["a", "bcd"]).clone()  # the file below it is broken later on
    assert first.tolist() == [[1.0, 1.0], [3.0, 1.0]]
    assert torch.equal(kept_vectors(encoder, ["a", "bcd"]), first) and encoder.calls == 1
    assert kept_vectors(encoder, ["bcd", "a"]).tolist() == [[3.0, 1.0], [1.0, 1.0]] and encoder.calls == 2
    other = Counting("another")
    assert torch.equal(kept_vectors(other, ["a", "bcd"]), first) and other.calls == 1
    assert kept_vectors(encoder, []).shape == (0, 2) and encoder.calls == 2
    for path in (tmp_path / "vectors").glob("*.safetensors"):
        path.write_bytes(b"broken")
    assert torch.equal(kept_vectors(encoder, ["a", "bcd"]), first) and encoder.calls == 3
    with pytest.raises(ValueError, match="texts must be several"):
        kept_vectors(encoder, "a")


def test_our_encoder_of_the_library_is_trained_once_and_never_on_test_files(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    pairs = [Pair(f"what number {number} does", f"def f{number}(x): return {number}", f"f{number}", f"m{number}.py")
             for number in range(60)]  # fmt: skip
    monkeypatch.setattr(kept, "library_pairs", lambda: pairs)
    seen = []
    train = bi_encoder.train_bi_encoder

    def counted(questions, answers, *others):
        seen.append(set(questions))
        return train(questions, answers, *others)

    monkeypatch.setattr(bi_encoder, "train_bi_encoder", counted)
    config = BiEncoderConfig(vocab_size=300, dim=8, hidden_size=8, batch_size=8, epochs=1)
    first, again = kept.library_encoder(config), kept.library_encoder(config)
    assert len(seen) == 1 and first.name == again.name and not again.training
    assert seen[0] == {pair.docstring for pair in split(pairs)[0]} and len(seen[0]) < 60
    kept.library_encoder(BiEncoderConfig(vocab_size=300, dim=8, hidden_size=8, batch_size=8, epochs=2))
    assert len(seen) == 2
