"""`rag index`: a folder into a store."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from course.progress import Line
from llm_rag.encoders.encoder import load_encoder
from llm_rag.folder.chunks import Chunking
from llm_rag.folder.documents import MAX_BYTES
from llm_rag.store.indexing import index
from llm_rag.store.schema import connect, read_settings, refuse_other_files, told
from llm_rag.store.store import Store


def run(
    folder: str, store: str, encoder: str, size: int | None, overlap: int | None, max_bytes: int | None, as_json: bool
) -> str:  # fmt: skip
    """Index, and say what was done."""
    path = Path(store).expanduser()
    refuse_other_files(path, create=True)  # before an encoder is loaded
    if not Path(folder).expanduser().is_dir():
        raise ValueError(f"{folder}: no such folder; give the folder that holds the documents")
    chunking = _chunking(path, size, overlap)
    with Store(path, load_encoder(encoder), chunking, write=True) as opened:
        line = Line("encoding", stream=sys.stderr)
        try:
            report = index(folder, opened, max_bytes or MAX_BYTES, lambda _: line.update(line.step + 1))
        finally:
            line.close()
    if as_json:
        return json.dumps(asdict(report), ensure_ascii=False)
    skipped = [f"left out {each.path}: {each.reason}" for each in report.skipped]
    return "\n".join([*skipped, str(report)])


def _chunking(path: Path, size: int | None, overlap: int | None) -> Chunking | None:
    """What was asked for, the rest as in the store that is there; None when nothing was."""
    if size is None and overlap is None:
        return None
    kept = Chunking()
    if path.exists() and path.stat().st_size:
        connection = connect(path, create=False)
        with told(path):
            settings = read_settings(connection)
        connection.close()
        kept = settings.chunking if settings else kept
    new_size = kept.size if size is None else size
    return Chunking(new_size, min(kept.overlap, max(0, new_size // 2)) if overlap is None else overlap)
