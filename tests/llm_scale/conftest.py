"""Processes that several tests share: starting them takes longer than what they run."""

import sys
from pathlib import Path

import pytest
from llm_scale.ranks import Ranks

sys.path.insert(0, str(Path(__file__).parent))  # the ranks import the jobs by name


@pytest.fixture(scope="session")
def two():
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture(scope="session")
def four():
    with Ranks(4) as ranks:
        yield ranks
