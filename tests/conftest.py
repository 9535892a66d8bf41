"""Set-up of the test suite. The plugin of the contract (memtx/contract/plugin.py) defines --memory, --golden and --devices.

pytest                                                      one device
pytest --devices=8                                          eight host devices, over which batches are sharded
pytest memtx/contract --memory=my_memory.py:MyMemory        the contract, on one mechanism
"""

import signal
from pathlib import Path

import pytest

from memtx.contract.environment import limit_memory, prepare

# A process that a script starts with `&` ignores Ctrl-C, and so do its children. Some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=400, help="the number of damaged inputs that tests/test_fuzz.py tries")
    parser.addoption("--histories", type=int, default=30, help="the number of histories that tests/library tries")


def pytest_configure(config):
    prepare(config)


def pytest_runtest_logfinish():
    limit_memory()


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """The folder in which the tiny runs of tests/runs.py keep their texts and cache."""
    return tmp_path_factory.mktemp("root")


@pytest.fixture(autouse=True)
def added_memories_end_with_the_test():
    """Take mechanisms that a test adds from files out of the registry again."""
    from memtx.memory import MEMORIES

    before = {*MEMORIES.origins}
    yield
    for name in {*MEMORIES.origins} - before:
        MEMORIES.pop(name, None)
        del MEMORIES.origins[name]
