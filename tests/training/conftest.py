"""Fixtures of the tests of training."""

import pytest

from memtx.training.checkpoint import Checkpointer
from tests.training.runs import CONFIG, save


@pytest.fixture
def saved(tmp_path):
    """A run with steps 1 and 2."""
    with Checkpointer(tmp_path / "run", CONFIG) as keeper:
        save(keeper, 1)
        save(keeper, 2)
    return tmp_path / "run"
