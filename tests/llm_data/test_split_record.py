import pytest
from llm_data.datamodule import LLMDataModule
from llm_data.text.corpora import Corpus
from llm_data.tokenizers.fast import train_fast_tokenizer

TEXTS = [f"document {number} about {number * number}" for number in range(200)]
TOKENIZER = train_fast_tokenizer(TEXTS, 270)


def ready(folder, stage, val=10, test=10, name="made", fingerprint="1"):
    corpus = Corpus(name, "made", fingerprint, lambda: iter(TEXTS), val_percent=val, test_percent=test)
    data = LLMDataModule(corpus, TOKENIZER, context=16, batch_size=4, cache=folder, progress=False)
    data.prepare_data()
    if stage:
        data.setup(stage)
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def state(folder):
    data = ready(folder, "fit")
    data.train_dataloader()
    return data.state_dict()


def documents(data, split):
    return set(data._corpus().documents(split))


def test_a_state_says_how_the_corpus_was_split(folder, state):
    expected = {"corpus": "made", "fingerprint": "1", "val_percent": 10, "test_percent": 10}
    assert state["split"] == expected and set(state) == {"train", "split"}
    for stage in ("validate", "test"):
        assert ready(folder, stage).state_dict() == {"split": expected}


SHARES = [(10, 10), (20, 10), (10, 20), (5, 5), (20, 0), (0, 20), (15, 10), (1, 30), (5, 15)]


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize(("val", "test"), SHARES)
@pytest.mark.parametrize("first", ["setup", "load"])
def test_documents_that_were_trained_on_are_not_judged(folder, state, stage, val, test, first):
    side = {"validate": "val", "test": "test"}[stage]
    if (val, test)[side == "test"] == 0:
        return  # no such side here
    data = ready(folder, stage if first == "setup" else None, val, test)
    call = (lambda: data.load_state_dict(state)) if first == "setup" else (lambda: data.setup(stage))
    if first == "load":
        data.load_state_dict(state)
    if documents(data, side) & documents(ready(folder, None), "train"):
        with pytest.raises(
            ValueError, match=rf"{side} side holds documents .*val_percent=10 and test_percent=10"
        ) as at:
            call()
        assert f"val_percent={val}" in str(at.value) and "\n" not in str(at.value)
    else:
        call()


def test_another_corpus_and_an_old_state_are_taken(folder, state):
    other = ready(folder, "validate", 40, 10, name="other", fingerprint="2")
    other.load_state_dict(state)
    for name, fingerprint in (("made", "2"), ("other", "1")):
        with pytest.raises(ValueError, match="val side holds documents"):
            ready(folder / fingerprint, "validate", 40, 10, name, fingerprint).load_state_dict(state)
    data = ready(folder, "validate", 40, 10)
    data.load_state_dict({})
    data.load_state_dict({"train": state["train"]})


@pytest.mark.parametrize("record", [3, [], {}, {"val_percent": "10", "test_percent": 5}])
def test_a_damaged_record_is_refused(folder, record):
    with pytest.raises(ValueError, match="record of its split is damaged"):
        ready(folder, "validate").load_state_dict({"split": record})


@pytest.mark.parametrize(
    "change", [{"rows": -1}, {"rows": 10**9}, {"rows": 2.0}, {"epoch": None}, {"steps": "1"}, {"epoch": True}]
)
def test_a_position_that_cannot_be_is_refused(folder, state, change):
    data = ready(folder, "fit")
    data.train_dataloader()
    with pytest.raises(ValueError, match=f"no loader's state: {next(iter(change))}="):
        data.load_state_dict({"train": {**state["train"], **change}})
