import os
import signal
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llm_data.rows.collate import make_batch
from llm_data.rows.loader import StatefulLoader
from llm_data.rows.naive import StatefulSampler
from llm_data.rows.packing import PACKINGS
from llm_data.rows.table import RowTable, build_table
from written_tokens import counted, write_tokens

LENGTHS = np.random.default_rng(0).integers(1, 30, size=83).tolist()
SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_tokens(tmp_path_factory.mktemp("tokens"), counted(LENGTHS), shards=3)


def make(tokens, packing="greedy", batch_size=3, context=16, **options):
    return StatefulLoader(
        RowTable(build_table(tokens, tokens.folder / "rows", context, packing)), batch_size, **options
    )


def ids(batch):
    """The tokens of a batch that are not padding; here each has an id of its own, and padding is 0."""
    return batch["input_ids"][batch["input_ids"] > 0].tolist()


def take(loader, number):
    iterator = iter(loader)
    return [next(iterator) for _ in range(number)]


def same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, two in zip(ours, theirs, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("world_size", [1, 3])
def test_an_epoch_shows_each_token_once_over_all_ranks(tokens, packing, world_size):
    seen = []
    for rank in range(world_size):
        loader = make(tokens, packing, rank=rank, world_size=world_size)
        batches = list(loader)
        assert len(batches) == -(-len(loader.table) // (3 * world_size))
        seen += [token for batch in batches for token in ids(batch)]
    assert sorted(seen) == list(range(1, sum(LENGTHS) + 1))


@pytest.mark.parametrize("packing", PACKINGS)
def test_epochs_differ_and_each_is_whole(tokens, packing):
    loader = make(tokens, packing)
    first, second = list(loader), list(loader)
    flat = [[token for batch in epoch for token in ids(batch)] for epoch in (first, second)]
    assert flat[0] != flat[1] and sorted(flat[0]) == sorted(flat[1])
    same(first, list(make(tokens, packing)))
    fixed = make(tokens, packing, shuffle=False)
    same(list(fixed), list(fixed))


@SLOW
@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 60), st.integers(0, 3))
def test_the_short_sampler_gives_the_loaders_rows(tokens, world_size, batch_size, stop, seed):
    number = len(make(tokens).table)
    # Where less than a row a rank is left for the last step, the loader shares the last two out another way.
    odd = 0 < number % (batch_size * world_size) < world_size
    for rank in range(world_size):
        loader = make(tokens, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        sampler = StatefulSampler(number, batch_size, seed, rank, world_size)
        for epoch in range(2):
            batches, chosen = list(loader), list(sampler)
            assert len(batches) == len(chosen)
            end = len(chosen) - 2 * odd
            same(batches[:end], [make_batch(loader.table, rows) for rows in chosen[:end]])
            assert sampler.state_dict() == {"epoch": epoch + 1, "rows": 0}
        stopped = StatefulSampler(number, batch_size, seed, rank, world_size)
        stopped.load_state_dict({"epoch": 1, "rows": 0})
        end = min(stop, len(chosen))
        seen = [rows for rows, _ in zip(stopped, range(end), strict=False)] if end else []
        resumed = StatefulSampler(number, batch_size, seed, rank, world_size)
        resumed.load_state_dict({"epoch": 1, "rows": min(end * batch_size * world_size, number)})
        rest = list(resumed) if end < len(chosen) else []
        assert [rows.tolist() for rows in seen + rest] == [rows.tolist() for rows in chosen]


def test_a_sampler_that_was_stopped_says_where() -> None:
    sampler = StatefulSampler(10, 2, world_size=2)
    batches = iter(sampler)
    next(batches), next(batches)
    assert sampler.state_dict() == {"epoch": 0, "rows": 8}
    next(batches)
    assert sampler.state_dict() == {"epoch": 1, "rows": 0}  # asked for at the last batch: the next is the next epoch's


@SLOW
@given(
    st.sampled_from(PACKINGS),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 60),
    st.integers(1, 5),
    st.booleans(),
)
def test_stopped_anywhere_and_restored_with_any_number_of_ranks(
    tokens, packing, before, after, stop, batch_size, drop_last
):
    """What one run shows up to `stop` and another from there is one epoch, each row once, in the same global order."""
    options = {"batch_size": batch_size, "drop_last": drop_last}
    ranks = [make(tokens, packing, rank=rank, world_size=before, **options) for rank in range(before)]
    stop = min(stop, len(ranks[0]) - 1)
    seen = [token for loader in ranks for batch in take(loader, stop) for token in ids(batch)]
    states = [loader.state_dict() for loader in ranks]
    assert all(state == states[0] for state in states)
    new = [make(tokens, packing, rank=rank, world_size=after, **options) for rank in range(after)]
    if drop_last and len(new[0].table) - states[0]["rows"] < batch_size * after:
        new[0].load_state_dict(states[0])  # nothing left that fills a step: on to the next epoch
        assert new[0].state_dict() == {**states[0], "epoch": states[0]["epoch"] + 1, "rows": 0, "steps": 0}
        return
    left = []
    for loader in new:
        loader.load_state_dict(states[0])
        expected = len(loader)
        batches = list(loader)
        assert len(batches) == expected - stop
        left.append(batches)
    assert len({len(batches) for batches in left}) == 1  # all ranks take the same number of steps
    rest = [token for batches in left for batch in batches for token in ids(batch)]
    assert not set(seen) & set(rest)
    if not drop_last:
        assert sorted(seen + rest) == list(range(1, sum(LENGTHS) + 1))
    if before == after:
        whole = [list(make(tokens, packing, rank=rank, world_size=before, **options))[stop:] for rank in range(before)]
        for ours, theirs in zip(left, whole, strict=True):
            same(ours, theirs)
    assert all(loader.epoch == 1 and loader.rows_done == 0 for loader in new)


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_global_order_does_not_depend_on_the_number_of_ranks(tokens, packing):
    def stream(world_size):
        steps = zip(
            *(make(tokens, packing, rank=rank, world_size=world_size) for rank in range(world_size)), strict=True
        )
        return [token for step in steps for batch in step for token in ids(batch)]

    assert stream(1) == stream(2) == stream(4)


def test_workers_change_nothing(tokens):
    reference = make(tokens)
    with_workers = make(tokens, num_workers=2)
    before = torch.get_rng_state()
    got = take(with_workers, 4)
    assert torch.equal(torch.get_rng_state(), before)  # the model's random numbers are left alone
    same(got, take(reference, 4))
    # Workers have read ahead by now; the position counts what was handed out.
    assert with_workers.state_dict() == reference.state_dict()
    resumed = make(tokens, num_workers=2)
    resumed.load_state_dict(with_workers.state_dict())
    same(list(resumed), list(reference))


def test_a_break_loses_nothing(tokens):
    loader = make(tokens)
    parts = [take(loader, 5), take(loader, 1), list(loader)]
    same([batch for part in parts for batch in part], list(make(tokens)))
    assert loader.epoch == 1


def test_a_loader_that_does_not_shuffle_begins_at_the_first_row(tokens):
    loader = make(tokens, shuffle=False)
    whole = list(loader)
    take(loader, 4)  # Lightning breaks validation off: for its sanity check, and with limit_val_batches
    same(list(loader), whole)
    take(loader, 4)
    state = loader.state_dict()
    assert len(loader) == len(whole)
    restored = make(tokens, shuffle=False)
    restored.load_state_dict(state)
    same(list(restored), whole[4:])
    same(list(restored), whole)


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize("batch_size", [2, 3, 4])
def test_no_rank_is_without_a_target(tokens, world_size, batch_size):
    number = len(make(tokens).table)
    for skipped in range(world_size * batch_size):  # every number of rows that a last step may have
        loaders = [make(tokens, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
        shown = []
        for loader in loaders:
            loader.load_state_dict({**loader.state_dict(), "rows": skipped})
            shown.append(list(loader))
            assert all(len(ids(batch)) for batch in shown[-1])
        assert {len(batches) for batches in shown} == {-(-(number - skipped) // (batch_size * world_size))}
        rows = sum(len(batch["input_ids"]) for batches in shown for batch in batches)
        assert rows == number - skipped


def test_a_rank_without_rows_takes_its_step(tokens):
    rows = len(make(tokens).table)
    loaders = [make(tokens, batch_size=rows - 1, rank=rank, world_size=rows) for rank in range(rows)]
    assert all(len(loader) == 1 for loader in loaders)
    ranks = 5
    small = [make(tokens, batch_size=(rows - 2) // ranks + 1, rank=rank, world_size=ranks) for rank in range(ranks)]
    assert sum(len(ids(batch)) for loader in small for batch in loader) == sum(LENGTHS)
    [last] = loaders[-1]
    lonely = make(tokens, batch_size=1, rank=rows, world_size=rows + 1)
    [batch] = lonely
    assert batch["input_ids"].shape == (1, 16) and (batch["labels"] == -100).all() and not ids(batch)
    assert len(ids(last)) > 0


def test_buckets_hold_rows_of_like_lengths(tokens):
    def spread(packing):
        return sum(np.ptp((batch["attention_mask"].sum(1)).numpy()) for batch in make(tokens, packing))

    assert spread("bucketed") < spread("dynamic") / 3
    loader = make(tokens, "bucketed")
    lengths, order = loader.table.filled, loader.order(0)
    assert len(lengths) < 50 * 3 and len(lengths) % 3  # one window, and a short batch at its end
    in_order = [tuple(sorted(lengths[order[start : start + 3]])) for start in range(0, len(order), 3)]
    by_length = np.sort(lengths)
    assert sorted(in_order) == sorted(tuple(by_length[start : start + 3]) for start in range(0, len(lengths), 3))
    widths = [batch["input_ids"].shape[1] for batch in make(tokens, "bucketed")]
    assert any(one > two for one, two in pairwise(widths))  # batches are shuffled, not sorted


def test_a_state_of_other_data_is_refused(tokens):
    state = make(tokens).state_dict()
    for options in ({"packing": "best_fit"}, {"context": 8}, {"seed": 1}, {"shuffle": False}):
        with pytest.raises(ValueError, match="belongs to other rows"):
            make(tokens, **options).load_state_dict(state)
    make(tokens, batch_size=7).load_state_dict(state)
    with pytest.raises(ValueError, match="batch_size too"):
        make(tokens, "bucketed", batch_size=7).load_state_dict(make(tokens, "bucketed").state_dict())


def test_what_is_no_state_is_refused(tokens):
    with pytest.raises(ValueError, match="no loader's state: epoch, plan, rows, steps missing"):
        make(tokens).load_state_dict({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"num_workers": -1}, "num_workers=-1 at least 0"),
        ({"rank": 2, "world_size": 2}, "rank=2 is not one of world_size=2"),
        ({"batch_size": 1000, "drop_last": True}, "drop_last leaves nothing"),
    ],
)
def test_refused(tokens, options, message):
    with pytest.raises(ValueError, match=message):
        make(tokens, **options)


class Dying(torch.utils.data.Dataset):
    """Data whose worker is killed, as the system does when memory runs out, or fails by itself."""

    def __init__(self, table):
        self.failing = table is FAILING

    def __getitem__(self, _):
        if self.failing:
            raise RuntimeError("a fault of its own")
        os.kill(os.getpid(), signal.SIGKILL)


FAILING = object()


def test_a_worker_that_was_killed_is_one_line(tokens, monkeypatch):
    monkeypatch.setattr("llm_data.rows.loader.RowDataset", lambda table, _: Dying(table))
    with pytest.raises(RuntimeError, match=r"^a worker process of num_workers=1 died .*lower num_workers") as caught:
        list(make(tokens, num_workers=1))
    assert "\n" not in str(caught.value)


def test_what_a_living_worker_raises_is_left_as_it_is(tokens, monkeypatch):
    monkeypatch.setattr("llm_data.rows.loader.RowDataset", lambda *_: Dying(FAILING))
    with pytest.raises(RuntimeError, match="a fault of its own"):
        list(make(tokens, num_workers=1))
