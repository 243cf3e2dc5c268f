from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_data.rows.collate import make_batch
from llm_data.rows.documents import IGNORE_INDEX, document_ids, document_mask
from llm_data.rows.naive import packed_row
from llm_data.rows.packing import PACKINGS, PADDED, plan_rows
from llm_data.rows.table import RowTable, build_table
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from written_tokens import counted, write_tokens

LENGTHS = np.random.default_rng(1).integers(1, 25, size=40).tolist()
VOCABULARY = sum(LENGTHS) + 1


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("tokens"), counted(LENGTHS), shards=3)


def table_of(tokens, context, packing, seed=0, pad_id=0):
    return RowTable(build_table(tokens, tokens.folder / "rows", context, packing, seed, pad_id))


def naive_batch(tokens, rows, chosen, pad_id):
    """`make_batch`, one piece at a time."""
    row_lengths = [sum(rows.length[rows.first[row] : rows.first[row + 1]]) for row in chosen]
    width = max(row_lengths) if rows.packing in ("dynamic", "bucketed") else rows.context
    batch = {name: [] for name in ("input_ids", "labels", "position_ids", "attention_mask")}
    for row in chosen:
        line = {name: [] for name in batch}
        for piece in range(rows.first[row], rows.first[row + 1]):
            start, length = rows.start[piece], rows.length[piece]
            ids = tokens[rows.document[piece]][start : start + length].tolist()
            line["input_ids"] += ids
            line["labels"] += [IGNORE_INDEX, *ids[1:]]
            line["position_ids"] += range(length)
            line["attention_mask"] += [1] * int(length)
        rest = int(width) - len(line["input_ids"])
        line["input_ids"] += [pad_id] * rest
        line["labels"] += [IGNORE_INDEX] * rest
        line["position_ids"] += [0] * rest
        line["attention_mask"] += [0] * rest
        for name, values in line.items():
            batch[name].append(values)
    del batch["position_ids" if rows.packing in PADDED else "attention_mask"]
    return {name: torch.tensor(values) for name, values in batch.items()}


@settings(deadline=None)
@given(st.sampled_from(PACKINGS), st.integers(2, 30), st.integers(1, 9), st.integers(0, 5))
def test_a_batch_is_what_the_plan_says(tokens, packing, context, number, seed):
    rows = plan_rows(tokens.lengths, context, packing, seed)
    chosen = np.random.default_rng(seed).permutation(len(rows))[:number]
    ours = make_batch(table_of(tokens, context, packing, seed), chosen)
    naive = naive_batch(tokens, rows, chosen, 0)
    assert ours.keys() == naive.keys()
    for name in naive:
        assert ours[name].dtype == torch.int64 and torch.equal(ours[name], naive[name]), name


@settings(deadline=None)
@given(st.sampled_from(["concat", "greedy", "best_fit"]), st.integers(2, 30), st.integers(0, 5))
def test_a_batch_is_made_of_short_rows(tokens, packing, context, seed):
    rows = plan_rows(tokens.lengths, context, packing, seed)
    made = []
    for first, last in pairwise(rows.first):
        places = zip(rows.document[first:last], rows.start[first:last], rows.length[first:last], strict=True)
        pieces = [tokens[document][start : start + length].tolist() for document, start, length in places]
        made.append(packed_row(pieces, context, 0))
    ours = make_batch(table_of(tokens, context, packing, seed), np.arange(len(rows)))
    assert {name: values.tolist() for name, values in ours.items()} == {
        name: [row[name] for row in made] for name in made[0]
    }


@pytest.mark.parametrize("packing", PACKINGS)
def test_no_rows_make_a_row_without_a_target(tokens, packing):
    batch = make_batch(table_of(tokens, 16, packing, pad_id=7), np.array([], dtype=np.int64))
    some = make_batch(table_of(tokens, 16, packing, pad_id=7), np.arange(2))
    assert batch.keys() == some.keys() and all(values.dtype == torch.int64 for values in batch.values())
    with torch.no_grad():
        assert llama()(**batch, use_cache=False).logits.isfinite().all()
    assert batch["input_ids"].tolist() == [[7] * 16] and batch["labels"].tolist() == [[IGNORE_INDEX] * 16]


def test_shards_are_gathered_in_any_order(tokens):
    assert len(tokens.manifest.shards) == 3
    documents = np.random.default_rng(2).permutation(len(tokens))
    gathered = tokens.gather(documents, np.zeros_like(documents), tokens.lengths[documents])
    assert gathered.tolist() == [token for document in documents for token in tokens[document]]


def llama(**options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=64, **sizes, **options)).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=4)).eval()


def alone(model, ids):
    """Logits of one document in a batch of its own."""
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0]


def documents_of(tokens, rows, row):
    pieces = rows.pieces(np.array([row]))
    cut = zip(rows.document[pieces], rows.start[pieces], rows.length[pieces], strict=True)
    return [tokens[document][start : start + length].astype(np.int64) for document, start, length in cut]


@pytest.mark.parametrize("make_model", [llama, gpt2])
@pytest.mark.parametrize("packing", ["concat", "greedy", "best_fit"])
def test_packed_documents_are_alone_for_the_models_of_transformers(tokens, packing, make_model):
    rows, model = plan_rows(tokens.lengths, 32, packing), make_model()
    chosen = np.arange(6)
    batch = make_batch(table_of(tokens, 32, packing), chosen)
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        leaking = model(input_ids=batch["input_ids"], use_cache=False).logits
    largest_leak = 0.0
    for row in chosen:
        start = 0
        for ids in documents_of(tokens, rows, row):
            own = slice(start, start + len(ids))
            expected = alone(model, ids)
            torch.testing.assert_close(logits[row, own], expected, atol=2e-6, rtol=0)  # fp32, other order of sums
            largest_leak = max(largest_leak, (leaking[row, own] - expected).abs().max().item())
            start += len(ids)
    assert largest_leak > 1e-3  # without position_ids the borders are gone, and this test sees it


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_loss_of_transformers_is_the_mean_over_all_targets(tokens, packing):
    rows, model = plan_rows(tokens.lengths, 32, packing), llama()
    batch = make_batch(table_of(tokens, 32, packing), np.arange(8))
    with torch.no_grad():
        ours = model(**batch, use_cache=False).loss
    total, targets = 0.0, 0
    for row in range(8):
        for ids in documents_of(tokens, rows, row):
            if len(ids) > 1:
                wanted = torch.tensor(ids[1:])
                total += functional.cross_entropy(alone(model, ids)[:-1], wanted, reduction="sum").item()
                targets += len(wanted)
    assert (batch["labels"] != IGNORE_INDEX).sum() == targets
    assert ours.item() == pytest.approx(total / targets, rel=1e-5)


def test_the_end_of_a_document_is_a_target(tmp_path):
    end = 99
    documents = [[1, 2, 3, end], [4, 5, end], [6, end]]
    written = write_tokens(tmp_path, documents)
    for packing in PACKINGS:
        table = table_of(written, 16, packing)
        batch = make_batch(table, np.arange(len(table)))
        assert (batch["labels"] == end).sum() == 3
        assert (batch["labels"] == 0).sum() == 0


def test_with_a_cache_the_models_of_transformers_ignore_the_borders():
    """Their default. Should this turn red, the warning in `llm_data.rows.collate` can go."""
    model = llama()
    ids, positions = torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([[0, 1, 2, 0, 1, 2]])
    with torch.no_grad():
        without = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        with_cache = model(input_ids=ids, position_ids=positions).logits
    assert (without - with_cache)[0, 3:].abs().max() > 1e-3


def test_document_mask_by_hand():
    position_ids = torch.tensor([[0, 1, 0, 1, 2]])
    assert document_ids(position_ids).tolist() == [[0, 0, 1, 1, 1]]
    assert document_mask(position_ids)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
