"""Models and tokenizers from a folder: what is added where padding has no token, and what is refused."""

import copy
import json
import socket

import pytest
import torch
from llm_core.model import GPT, GPTConfig
from llm_core.store.registry import PAD, load_model, save_model, with_padding
from llm_data.datamodule import LLMDataModule
from llm_data.tokenizers.fast import character_tokenizer
from loss_callbacks import own_text
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(["alpha beta gamma delta epsilon zeta eta theta"])


def without_pad(pad=None):
    """As GPT-2 was published: one special token, which ends a text; `pad` set as tutorials set it."""
    letters = {letter: number for number, letter in enumerate("abcdefghilmnoprtz ")}
    made = Tokenizer(WordLevel({**letters, "<|endoftext|>": len(letters)}, unk_token=" "))
    made.pre_tokenizer = Split("", "isolated")
    plain = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")
    plain.pad_token = pad
    return plain


def folder_of(tmp_path, tokenizer, vocab_size=None):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=vocab_size or len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=16)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("pad", ["none", "end"])
def test_padding_gets_a_token_and_the_model_a_row(tmp_path, tokenizer, pad):
    plain = without_pad("<|endoftext|>" if pad == "end" else None)
    before = folder_of(tmp_path, plain)
    model, loaded = with_padding(*load_model(tmp_path, transformers=True))
    assert loaded.pad_token == PAD and loaded.pad_token_id == len(plain) != loaded.eos_token_id
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == len(plain) + 1
    assert model.config.pad_token_id == loaded.pad_token_id
    ids = torch.arange(2, 10)[None]
    torch.testing.assert_close(model(ids).logits[..., : len(plain)], before(ids).logits)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_room_in_the_vocabulary_is_used(tmp_path, tokenizer):
    plain = without_pad()
    folder_of(tmp_path, plain, vocab_size=len(plain) + 30)
    model, loaded = with_padding(*load_model(tmp_path, transformers=True))
    assert loaded.pad_token_id == len(plain)
    assert model.config.vocab_size == len(plain) + 30


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows(tmp_path):
    plain = without_pad()
    folder_of(tmp_path, plain)
    plain.add_special_tokens({"pad_token": "<fill>"})
    plain.save_pretrained(tmp_path)
    model, loaded = with_padding(*load_model(tmp_path, transformers=True))
    assert loaded.pad_token == "<fill>"
    assert model.config.vocab_size == len(loaded) == len(plain)


def test_a_model_of_ours_comes_as_it_is(tmp_path, tokenizer):
    torch.manual_seed(0)
    ours = GPT(GPTConfig(len(tokenizer), hidden_size=32, num_hidden_layers=2)).eval()
    save_model(ours, tokenizer, tmp_path)
    model, loaded = with_padding(*load_model(tmp_path, transformers=True))
    assert (loaded.pad_token_id, loaded.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    ids = torch.arange(2, 10)[None]
    torch.testing.assert_close(model(ids).logits, ours(ids).logits, rtol=1e-5, atol=1e-5)
    assert not model.training


def test_padding_takes_no_others_id(tmp_path):
    """The library puts a new token at the number of tokens, which another one has where ids have a gap."""
    made = Tokenizer(WordLevel({"a": 0, "b": 1, "c": 2, "<end>": 3, "z": 5}, unk_token="a"))
    gapped = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    folder_of(tmp_path, gapped, vocab_size=8)
    with pytest.raises(ValueError, match="share the id 5; give the tokenizer a pad_token"):
        with_padding(*load_model(tmp_path, transformers=True))


def test_float32_unless_asked(tmp_path, tokenizer):
    model = folder_of(tmp_path, tokenizer)
    copy.deepcopy(model).bfloat16().save_pretrained(tmp_path)
    assert load_model(tmp_path, transformers=True)[0].dtype == torch.float32
    assert load_model(tmp_path, transformers=True, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_what_comes_out_fits_a_datamodule(tmp_path, tokenizer):
    folder_of(tmp_path, without_pad())
    model, loaded = with_padding(*load_model(tmp_path, transformers=True))
    data = LLMDataModule(
        f"text:{own_text(tmp_path)}", loaded, context=16, batch_size=2, val_percent=20, cache=tmp_path / "cache",
        progress=False,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    assert data.vocab_size <= model.config.vocab_size
    assert torch.isfinite(model(**next(iter(data.train_dataloader())), use_cache=False).loss)


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gives no causal language model") as caught:
        with_padding(*load_model(tmp_path, transformers=True))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_an_end_is_refused(tmp_path, tokenizer):
    endless = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")))
    folder_of(tmp_path, tokenizer)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    endless.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="end-of-text token"):
        with_padding(*load_model(tmp_path, transformers=True))


def test_a_long_story_becomes_one_line(monkeypatch):
    def tell(*_, **__):
        raise OSError("no such id\nIf you meant\nsomething else")

    monkeypatch.setattr("llm_core.store.registry.AutoModelForCausalLM.from_pretrained", tell)
    with pytest.raises(ValueError) as caught:
        with_padding(*load_model("some/model", transformers=True))
    assert str(caught.value) == "'some/model' gives no causal language model: no such id"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n_layer": 2}, "weights lack transformer.h.1."), ({"n_positions": 8}, r"wpe.weight has the shape \(16, 16\)")],
)
def test_weights_that_do_not_fit_are_never_drawn(tmp_path, tokenizer, changes, message):
    folder_of(tmp_path, tokenizer)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ValueError, match=message):
        with_padding(*load_model(tmp_path, transformers=True))


def test_a_run_of_ours_is_no_model_of_transformers(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match="is a checkpoint of babygpt, not a model of transformers; `babygpt export`"):
        load_model(tmp_path, transformers=True)
