"""What a train step on a CPU gains from outside its program: memory pages that stay, and are found at once."""

import ctypes

import jax

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
_HEAP = 2**26  # bytes of glibc's HEAP_MAX_SIZE: the heap of a thread


def keep_pages() -> None:
    """Have malloc keep what is freed, for the whole process, and JAX run CPU programs where they are called; before JAX starts.

    A step's buffers are one large block, which glibc gives back to the system after every step; the next step then takes a
    fault for each of its pages: a fifth of a train step on a CPU. The small blocks in which its dots pack their factors come
    from the threads' own heaps, which are not given back either: in one heap for all, each is looked for in the fragments
    that compiling left, a seventh of a step. The large block must not come from a thread's heap, which it does not fit in, so
    that it would be mapped anew at every step: hence no dispatch to a thread. malloc is left alone where the C library is not
    glibc; other devices than the CPU are dispatched to as ever.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, _HEAP)):
            mallopt(option, value)
