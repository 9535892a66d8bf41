"""What a train step on a CPU gains from outside its program: memory pages that stay."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_pages() -> None:
    """Have malloc keep what is freed, for the whole process; call it before JAX starts.

    A step's buffers are one large block, which glibc gives back to the system after every step; the next step then takes a
    fault for each of its pages: a fifth of a train step on a CPU. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)):
            mallopt(option, value)
