import os
import pickle
import tracemalloc
from pathlib import Path

import llm_data.rows.table as row_table
import numpy as np
import pytest
from llm_data.rows.packing import PACKINGS, PADDED, plan_rows
from llm_data.rows.table import RowTable, build_table, is_whole_table, lay_out, table_folder
from llm_data.shards.manifest import MANIFEST, ShardError
from written_tokens import counted, write_tokens

LENGTHS = np.random.default_rng(3).integers(1, 30, size=90).tolist()


@pytest.fixture
def tokens(tmp_path):
    return write_tokens(tmp_path / "tokens", counted(LENGTHS), shards=2)


def test_two_rows_by_hand(tmp_path):
    written = write_tokens(tmp_path, [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10]])
    rows = plan_rows(written.lengths, 6, "best_fit")
    ids, positions = lay_out(written, rows, np.arange(len(rows)), pad_id=99)
    by_row = {tuple(row): tuple(place) for row, place in zip(ids.tolist(), positions.tolist(), strict=True)}
    assert by_row == {(6, 7, 8, 9, 10, 99): (0, 1, 2, 3, 4, 0), (1, 2, 3, 4, 5, 99): (0, 1, 2, 0, 1, 0)}


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_table_written_in_small_chunks_is_the_same(tokens, tmp_path, packing, monkeypatch):
    one = RowTable(build_table(tokens, tmp_path / "one", 16, packing))
    monkeypatch.setattr(row_table, "CHUNK_TOKENS", 40)
    two = RowTable(build_table(tokens, tmp_path / "two", 16, packing))
    assert (one.ids == two.ids).all() and (one.filled == two.filled).all() and len(one) == len(one.filled)
    if packing in PADDED:
        assert one.positions is None and len(one.ids) == sum(LENGTHS)
    else:
        assert (one.positions == two.positions).all() and one.ids.shape == (len(one), 16)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_plan_in_parts_holds_every_token_once(tokens, tmp_path, packing, monkeypatch):
    monkeypatch.setattr(row_table, "PLAN_DOCUMENTS", 20)
    table = RowTable(build_table(tokens, tmp_path, 16, packing))
    assert sorted(table.ids[table.ids > 0].tolist()) == list(range(1, sum(LENGTHS) + 1))
    monkeypatch.setattr(row_table, "PLAN_DOCUMENTS", 100)
    whole = RowTable(build_table(tokens, tmp_path / "whole", 16, packing))
    assert len(whole) <= len(table) <= len(whole) + 5
    rows = plan_rows(tokens.lengths, 16, packing)
    assert (whole.filled == rows.lengths).all()  # a corpus that is not larger is planned at once


def test_a_whole_table_is_kept(tokens, tmp_path):
    folder = build_table(tokens, tmp_path, 16, "greedy")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert build_table(tokens, tmp_path, 16, "greedy") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")} == before


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: os.truncate(path, 150)])
@pytest.mark.parametrize("part", ["ids", "positions", "filled"])
def test_a_damaged_table_is_rebuilt(tokens, tmp_path, damage, part):
    folder = build_table(tokens, tmp_path, 16, "best_fit")
    path = folder / f"{part}.npy"
    whole = path.read_bytes()
    damage(path)
    assert not is_whole_table(folder)
    if damage is not flip:
        with pytest.raises(ShardError, match=r"are damaged .* build_table rebuilds them"):
            RowTable(folder)
    build_table(tokens, tmp_path, 16, "best_fit")
    assert path.read_bytes() == whole and is_whole_table(folder)


def test_without_a_manifest_there_is_no_table(tokens, tmp_path):
    folder = build_table(tokens, tmp_path, 16, "best_fit")
    for broken in ("", "[]", "{"):
        (folder / MANIFEST).write_text(broken)
        with pytest.raises(ShardError, match="holds no rows"):
            RowTable(folder)
    (folder / MANIFEST).unlink()
    assert build_table(tokens, tmp_path, 16, "best_fit") == folder and is_whole_table(folder)


def test_every_setting_has_a_folder_of_its_own(tokens, tmp_path):
    settings = [(16, "greedy", 0, 0), (17, "greedy", 0, 0), (16, "concat", 0, 0), (16, "greedy", 1, 0)]
    settings.append((16, "greedy", 0, 5))
    folders = {build_table(tokens, tmp_path, *setting) for setting in settings}
    assert len(folders) == 5 and all(is_whole_table(folder) for folder in folders)
    assert folders == {table_folder(tmp_path, tokens.manifest, *setting) for setting in settings}


def test_tables_of_other_shards_are_deleted(tokens, tmp_path):
    old = [build_table(tokens, tmp_path / "rows", 16, packing) for packing in PACKINGS]
    changed = write_tokens(tmp_path / "changed", counted([*LENGTHS, 4]))
    new = build_table(changed, tmp_path / "rows", 16, "greedy")
    assert new.exists() and not any(folder.exists() for folder in old)
    build_table(changed, tmp_path, 16, "greedy")
    assert tokens.folder.exists()  # a folder that is no table is left alone


def test_a_worker_gets_the_path_and_not_the_data(tokens, tmp_path):
    table = RowTable(build_table(tokens, tmp_path, 16, "best_fit"))
    assert len(pickle.dumps(table)) < 500
    assert (pickle.loads(pickle.dumps(table)).ids == table.ids).all()


def test_memory_does_not_grow_with_the_table(tmp_path):
    length = 100
    documents = [list(range(1, length + 1))] * 60_000
    written = write_tokens(tmp_path / "tokens", documents, shards=2)
    del documents
    tracemalloc.start()
    folder = build_table(written, tmp_path, 256, "best_fit")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = sum(path.stat().st_size for path in folder.glob("*.npy"))
    assert size > 24e6
    # A chunk is a million tokens, in some eight int64 arrays at a time, whatever the size of the table.
    assert peak < 100e6
