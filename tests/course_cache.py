"""A fixture that helper packages' tests share, through their conftest."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Path]:
    """One cache for all workers of the session, so that the library is taken apart once.

    For a module at a time: a worker goes on to notebooks, and they have the reader's cache.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "course-cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COURSE_CACHE", str(folder))
        yield folder
