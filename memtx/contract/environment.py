"""The set-up of Python and JAX for tests: host devices, fast compilation, a compilation cache and rare garbage collection."""

import ctypes
import gc
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

# Compilation takes most of the time of the tests. These flags compile faster, to slower code with the same meaning.
# `XLA_FLAGS=` on the command line tests the usual code. XLA aborts on an unknown flag, hence the check of the version.
FAST = ["--xla_backend_optimization_level=0"]
if version("jax").startswith("0.10."):
    FAST += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    # Commands set this one (memtx/training/cpu.py). With it from the start, one program has one entry in the cache.
    FAST += ["--xla_cpu_enable_concurrency_optimized_scheduler=false"]


def prepare(config) -> None:
    """Set the environment and JAX's options. Call it before JAX starts its backend. A second call changes nothing."""
    gc.set_threshold(100_000, 20, 100)  # JAX's traces make many objects that stay. By default Python looks at them too often.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_FLAGS", " ".join(FAST))
    import jax

    jax.config.update("jax_num_cpu_devices", config.getoption("devices"))
    folder = Path(tempfile.gettempdir()) / f"memtx-tests-{os.getuid()}"
    cache = {
        "jax_compilation_cache_dir": os.environ.get("MEMTX_TEST_CACHE", str(folder)),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in cache.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)  # for processes that tests start


_limit = 2.25 * 2**30  # bytes of memory at which the process forgets its programs


def limit_memory() -> None:
    """Free the compiled programs of earlier tests if the process has grown too large. Call it after each test.

    Later tests read their programs from the compilation cache again. glibc returns the memory only on request. Where there is
    no /proc, nothing happens.
    """
    global _limit
    if _resident() < _limit:
        return
    import jax

    jax.clear_caches()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    _limit = max(_limit, _resident() + 2**29)


def _resident() -> int:
    """Return the memory of this process in bytes, or 0 if it is unknown."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
