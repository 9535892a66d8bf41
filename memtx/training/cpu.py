"""Settings of the process for computations on a CPU."""

import ctypes
import os
from importlib.metadata import version

import jax

ORDER = "xla_cpu_enable_concurrency_optimized_scheduler"

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_HEAP = 2**26  # glibc's HEAP_MAX_SIZE, the size in bytes of a thread's heap


def keep_pages() -> None:
    """Keep freed pages in the process. Call this before JAX starts.

    glibc returns a step's large block of buffers to the system after every step, and the next step then faults on each page.
    This setting keeps the pages, both of the main heap and of the threads' heaps, from which matrix products take small blocks.
    (One heap for all threads would be slower, because it is fragmented by compilation.) The large block does not fit into a
    thread's heap and would be mapped again at every step. It must come from the main thread, so the function also disables
    JAX's asynchronous dispatch on the CPU. Only the CPU with glibc is affected.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, _HEAP)):
            mallopt(option, value)


def schedule_in_order() -> None:
    """Make XLA run the operations of a CPU program in an order that cannot deadlock. Call it before JAX computes anything.

    With jaxlib 0.10 and two cores, programs with two independent loops wait forever: `memtx eval` of a matrix memory did. The
    flag has no effect on other devices. XLA aborts on unknown flags, hence the check of the version.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if version("jax").startswith("0.10.") and ORDER not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{ORDER}=false".strip()
