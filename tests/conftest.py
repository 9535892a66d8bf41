"""Options of the test suite, and which mechanisms the contract tests run over.

pytest                                             one device
pytest --devices=8                                 eight host devices; what carries a batch is sharded over them
pytest memtx/contract --memory=my_memory.py:MyMemory      the contract, on a mechanism of your own
"""

import os
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiling is most of the time of the suite: this compiles up to six times as fast, to slower code with the same meaning.
# XLA_FLAGS= on the command line tests the usual code. XLA aborts on a flag that it does not know, hence the version.
FAST = ["--xla_backend_optimization_level=0"]
if version("jax").startswith("0.10."):
    FAST.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FAST))
# What a script starts with `&` ignores Ctrl-C, and so does all that it starts; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--devices", type=int, default=1, help="host devices: 1, 2, 4 or 8")
    parser.addoption("--memory", default="", help="path/to/file.py:ClassName, a mechanism to test instead of MEMORIES")
    parser.addoption("--fuzz", type=int, default=400, help="damaged inputs that tests/test_fuzz.py tries in all")


def pytest_configure(config):
    import jax

    devices = config.getoption("devices")
    if devices not in (1, 2, 4, 8):
        raise pytest.UsageError(f"--devices must be 1, 2, 4 or 8, not {devices}")
    jax.config.update("jax_num_cpu_devices", devices)
    # Compilation is most of the suite's time, so what was compiled once is kept for the next run.
    cache = Path(tempfile.gettempdir()) / f"memtx-tests-{os.getuid()}"
    jax.config.update("jax_compilation_cache_dir", os.environ.get("MEMTX_TEST_CACHE", str(cache)))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_generate_tests(metafunc):
    """`case`: each mechanism at each of its tiny settings. `golden`: each golden of those mechanisms."""
    from memtx.contract.case import cases
    from tests.golden.make import GOLDENS

    given = metafunc.config.getoption("memory")
    if "case" in metafunc.fixturenames:
        # with -n 2 --dist loadgroup one process has all tests of a mechanism, and compiles its programs once
        group = [pytest.param(case, id=case.id, marks=pytest.mark.xdist_group(case.name)) for case in cases(given)]
        metafunc.parametrize("case", group)
    if "golden" in metafunc.fixturenames:
        metafunc.parametrize("golden", [] if given else list(GOLDENS))


@pytest.fixture(scope="session")
def root(tmp_path_factory) -> Path:
    """Where the tiny runs of tests/runs.py have their texts and cache."""
    return tmp_path_factory.mktemp("root")
