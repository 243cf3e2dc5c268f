"""One setting of the `tokenizers` library, made for a moment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "TOKENIZERS_PARALLELISM"


@contextmanager
def tokenizers_in_one_thread() -> Iterator[None]:
    """Within, each call of the library stays on the thread that makes it, and processes may be forked.

    The library otherwise spreads every call over all cores, which hides how many workers are at work; and it complains
    on standard error when a process is forked later. It reads the variable at each call.
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
