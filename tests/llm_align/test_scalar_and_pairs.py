"""Models that give numbers, and the pairs they learn from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from align_jobs import module_of
from llm_align.data.pairs import PairRows, PairsDataModule, pair_batch
from llm_align.data.records import answer_ids, pair_of, prompt_of, read_pairs, read_prompts
from llm_align.models.load import is_scalar_folder, prepare_policy, prepare_scalar
from llm_align.models.scalar import load_scalar, read_last, save_scalar
from llm_align.objectives.preference import bradley_terry
from llm_peft.lora.config import LoRAConfig
from llm_peft.settings import FineTune
from transformers import AutoModelForSequenceClassification

FULL, LORA = FineTune(method="full"), FineTune(library="ours", lora=LoRAConfig(r=4, init_lora_weights="kaiming"))
TURNS = [{"role": "user", "content": "What is 3 plus one?"}]


@pytest.fixture
def scalar(base):
    torch.manual_seed(0)
    return prepare_scalar(str(base), FULL)


def test_the_folder_is_transformers(scalar, tmp_path):
    """Numbers at the right token, with its own search for padding, where padding has a token of its own."""
    save_scalar(scalar.model, scalar.tokenizer, tmp_path / "x")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "x").eval()
    pad = theirs.config.pad_token_id
    assert pad is not None and pad != scalar.tokenizer.eos_token_id
    ids = torch.randint(5, 100, (4, 12))
    lengths = torch.tensor([12, 7, 1, 4])
    for row, length in enumerate(lengths.tolist()):
        ids[row, length:] = pad
    wanted = theirs(ids, attention_mask=(ids != pad).long()).logits[:, 0]
    torch.testing.assert_close(read_last(scalar.model(ids), lengths), wanted, rtol=0, atol=1e-5)
    again, tokenizer = load_scalar(tmp_path / "x")
    torch.testing.assert_close(again(ids), scalar.model.eval()(ids), rtol=0, atol=0)
    assert tokenizer is not None and is_scalar_folder(tmp_path / "x")
    assert prepare_scalar(str(tmp_path / "x"), FULL).model.score.weight.equal(scalar.model.score.weight)


def test_where_padding_is_the_end_token_a_search_reads_one_early(scalar, tmp_path):
    """The published bug: the number is taken before the answer's end was read."""
    save_scalar(scalar.model, scalar.tokenizer, tmp_path / "x")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "x").eval()
    end = theirs.config.pad_token_id = int(scalar.tokenizer.eos_token_id)
    ids = torch.tensor([[9, 10, 11, end, end, end]])
    ours = scalar.model.eval()(ids)
    torch.testing.assert_close(theirs(ids).logits[:, 0], ours[:, 2], rtol=0, atol=1e-5)
    assert (read_last(ours, torch.tensor([4])) - ours[:, 2]).abs() > 1e-3


def test_padding_does_not_change_a_number(scalar):
    ids = torch.randint(5, 100, (3, 9))
    other = torch.cat([ids, torch.randint(5, 100, (3, 5))], dim=1)
    lengths = torch.tensor([9, 9, 9])
    torch.testing.assert_close(
        read_last(scalar.model(other), lengths), read_last(scalar.model(ids), lengths), rtol=0, atol=1e-5
    )


def test_the_base_model_is_left_as_it_is(base):
    policy = prepare_policy(str(base), FULL)
    made = prepare_scalar(str(base), LORA)
    trained = {name for name, each in made.model.named_parameters() if each.requires_grad}
    assert "score.weight" in trained and all("lora" in name or name == "score.weight" for name in trained)
    assert any("lora_A" in name for name in trained)
    ids = torch.randint(5, 100, (2, 8))
    hidden = policy.model.features(ids)
    torch.testing.assert_close(made.model(ids), (hidden @ made.model.score.weight.T)[..., 0], rtol=0, atol=1e-5)


def test_reward_gradients_are_those_of_the_formula(base):
    module = module_of("reward", str(base))
    rows = PairRows([pair_of({"messages": TURNS, "chosen": "It is 4.", "rejected": "It is 5, I think."},
                             module.prepared.tokenizer)] * 2)  # fmt: skip
    batch = pair_batch(rows, np.array([0, 1]))
    total, count = module.loss(batch)
    total.backward()
    found = module.model.score.weight.grad.clone()
    module.model.zero_grad()
    numbers = [module.model(ids[None, :length])[0, -1] for ids, length in
               zip(batch["input_ids"], batch["lengths"].tolist(), strict=True)]  # fmt: skip
    alone = bradley_terry(torch.stack(numbers[:2]), torch.stack(numbers[2:]))
    alone.backward()
    torch.testing.assert_close(found, 2 * module.model.score.weight.grad, rtol=1e-4, atol=1e-5)
    assert int(count) == 2 and float(total.detach()) == pytest.approx(2 * float(alone.detach()), abs=1e-5)


def test_a_rank_without_a_pair_takes_its_step(base):
    for kind in ("dpo", "reward"):
        module = module_of(kind, str(base))
        rows = PairRows([pair_of({"prompt": "a", "chosen": "b", "rejected": "c"}, module.prepared.tokenizer)])
        total, count = module.loss(pair_batch(rows, np.array([], dtype=int)))
        total.backward()
        assert int(count) == 0 and float(total.detach()) == 0.0
        assert all(not each.grad.any() for each in module.model.parameters() if each.grad is not None)


# -- records ----------------------------------------------------------------------------------------------------------


def test_an_answer_has_the_tokens_that_would_be_written(tokenizer):
    pair = pair_of({"messages": TURNS, "chosen": "It is 4.", "rejected": "It is 5."}, tokenizer)
    text = tokenizer.apply_chat_template([*TURNS, {"role": "assistant", "content": "It is 4."}], tokenize=False)
    assert tokenizer.decode(pair.prompt.ids + pair.chosen) == text.removesuffix("\n")
    assert pair.chosen[-1] == pair.rejected[-1] == tokenizer.eos_token_id
    assert pair.prompt.text == "What is 3 plus one?"
    plain = pair_of({"prompt": "It", "chosen": " is 4.", "rejected": " is 5."}, tokenizer)
    assert tokenizer.decode(plain.chosen) == f" is 4.{tokenizer.eos_token}" and plain.prompt.text == "It"
    assert answer_ids("", tokenizer, None) == (tokenizer.eos_token_id,)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([], "expected a JSON object, not a list"),
        ({"text": "a"}, "expected one of messages and prompt; it has text"),
        ({"prompt": "a", "messages": TURNS}, "it has messages and prompt"),
        ({"prompt": 3}, "its prompt is a int"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "a prompt is empty; give at least one token"),
        ({"messages": []}, "messages must be a list of turns, and not empty"),
        ({"messages": [*TURNS, {"role": "assistant", "content": "4"}]}, "the last turn is the assistant's"),
        ({"messages": [{"role": "user", "content": "a <|endoftext|> b"}]}, "special token"),
        ({"prompt": "a", "chosen": "b"}, "its rejected is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same text"),
        ({"prompt": "a", "chosen": "b<|endoftext|>", "rejected": "b"}, "special token"),
    ],
)
def test_what_is_no_pair_is_told_with_its_line(record, words, tokenizer, tmp_path):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(record) + "\n", "utf-8")
    with pytest.raises(ValueError, match=words) as caught:
        read_pairs(path, tokenizer)
    assert str(caught.value).startswith(f"{path}:3") and "\n" not in str(caught.value)


def test_files_that_are_none(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file; give a .jsonl file of pairs"):
        read_pairs(tmp_path / "nowhere.jsonl", tokenizer)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no prompts; write one JSON object a line"):
        read_prompts(tmp_path / "empty.jsonl", tokenizer)
    assert prompt_of({"prompt": "It"}, tokenizer).text == "It"


def test_a_longer_pair_is_refused_or_left_out(files, tokenizer, tmp_path):
    lines = (files / "pairs.jsonl").read_text() + json.dumps({"prompt": "a", "chosen": "b " * 99, "rejected": "c"})
    path = tmp_path / "pairs.jsonl"
    path.write_text(lines)
    data = PairsDataModule(str(path), val=str(files / "pairs.jsonl"), context=60)
    data.tokenizer = tokenizer
    with pytest.raises(ValueError, match="more than context=60; raise context, or set longer=leave_out"):
        data.setup()
    data = PairsDataModule(str(path), val=str(files / "pairs.jsonl"), context=60, longer="leave_out")
    data.tokenizer = tokenizer
    data.setup()
    assert data.left_out == 1 and len(data.rows("train")) == len(data.rows("val")) == 24


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"longer": "cut"}, "longer='cut' is none of refuse, leave_out"), ({"val_percent": 0}, "val_percent=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        PairsDataModule("x.jsonl", **changes)


def test_models_that_cannot_be(base, scalar):
    with pytest.raises(ValueError, match="pissa"):
        prepare_policy(str(base), FineTune(library="ours", lora=LoRAConfig(init_lora_weights="pissa")))
    with pytest.raises(ValueError, match="library='peft' is for models of transformers; here take library='ours'"):
        prepare_policy(str(base), FineTune())
    with pytest.raises(ValueError, match="qlora"):
        prepare_scalar(str(base), FineTune(method="qlora", library="ours"))
