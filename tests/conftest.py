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


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """With --dist loadgroup the tests of a file share a process, and with it their fixtures and compiled programs."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


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


@pytest.fixture
def tpu(monkeypatch):
    """Emulate a TPU: without a precision, the operands of a float32 product are rounded to bfloat16."""
    import jax  # after `prepare`
    import jax.numpy as jnp
    from jax import lax

    bind, before = lax.dot_general_p.bind, jax.config.jax_default_matmul_precision

    def rounded(x, y, **how):
        given = how["precision"]
        if given is None or lax.Precision.DEFAULT in given:
            x, y = (lax.reduce_precision(a, 8, 7) if a.dtype == jnp.float32 else a for a in (x, y))
        return bind(x, y, **how)

    monkeypatch.setattr(lax.dot_general_p, "bind", rounded)
    jax.clear_caches()
    yield
    jax.clear_caches()
    assert jax.config.jax_default_matmul_precision == before
