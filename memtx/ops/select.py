"""The k best of each row, as `lax.top_k` returns them, but fast on a CPU, where XLA sorts one row after the other on one core.

*Long rows by groups.* The k best entries are in the k groups with the highest maxima, so only those groups are searched. The
groups and their entries are selected in the same way, until rows are short.

*Short rows by rank.* Each entry is compared with all others of its row, in vectors and on all cores.

N rows (any leading axes), M entries of a row, k results.
"""

from __future__ import annotations

import math
from functools import partial

import jax.numpy as jnp
from jax import Array, lax

SHORT = 128  # rows up to this length are ranked by comparing all pairs
UNROLL = 16  # entries that one pass compares or writes


def select(x_NM: Array, k: int) -> tuple[Array, Array]:
    """Return the k largest of the last axis, sorted, and their indices, on one device.

    If entries are equal, the lower index comes first.
    """
    size = x_NM.shape[-1]
    each = math.gcd(group(size, k), size)
    if size <= SHORT or each == 1 or size // each < 2 * k:
        return _of_short(x_NM, k)
    parts = x_NM.reshape(*x_NM.shape[:-1], -1, each)
    chosen = _in_order(select(parts.max(-1), k)[1])  # in order, so that of equal entries the lower index comes first
    entries = jnp.take_along_axis(parts, chosen[..., None], -2).reshape(*x_NM.shape[:-1], -1)
    value, place = select(entries, k)
    return value, jnp.take_along_axis(chosen, place // each, -1) * each + place % each


def group(size: int, k: int) -> int:
    """Return the number of entries of a group, a power of 2.

    With this size there are about as many groups as entries in the k best groups.
    """
    return 1 << max(0, int(math.log2(size / k) / 2))


def _in_order(index: Array) -> Array:
    """Sort rows of integers below 2^24. Ranking uses all cores of a CPU, and `sort` only one."""
    return -_of_short(-index.astype(jnp.float32), index.shape[-1])[0].astype(jnp.int32)


def _of_short(x_NM: Array, k: int) -> tuple[Array, Array]:
    rows_NM = x_NM.reshape(-1, x_NM.shape[-1])
    sort = lambda x_NM: tuple(lax.top_k(x_NM, k))  # noqa: E731
    if rows_NM.shape[1] <= SHORT and rows_NM.dtype == jnp.float32:
        best = lax.platform_dependent(rows_NM, cpu=partial(by_rank, k=k), default=sort)
    else:
        best = sort(rows_NM)
    value_Nk, place_Nk = (a.reshape(*x_NM.shape[:-1], k) for a in best)
    return value_Nk, place_Nk


def by_rank(x_NM: Array, k: int) -> tuple[Array, Array]:
    """Compute `lax.top_k` of float32 from each entry's rank in its row: M^2 comparisons, in vectors and on all cores.

    A later entry precedes another if it is larger, and an earlier one if it is no smaller. For integers the second test is that
    the entry plus 1 is larger.
    """
    bits_MN = lax.bitcast_convert_type(x_NM, jnp.int32).T
    key_MN = bits_MN ^ (lax.shift_right_arithmetic(bits_MN, 31) & 0x7FFFFFFF)  # integers that sort like the floats
    key_MN = jnp.pad(key_MN, ((0, -len(key_MN) % UNROLL), (0, 0)), constant_values=jnp.iinfo(jnp.int32).min)
    size = len(key_MN)
    others = jnp.concatenate([key_MN, key_MN + 1])  # from m + 1 on: the later entries of m, then its earlier ones

    def compare(rank_MN, shift):
        return rank_MN + (lax.dynamic_slice_in_dim(others, shift, size) > key_MN), None

    def put(place_kN, entry):
        m, rank_N = entry
        return jnp.where(rank_N == jnp.arange(k)[:, None], m, place_kN), None

    rank_MN = lax.scan(compare, jnp.zeros_like(key_MN), jnp.arange(1, size), unroll=UNROLL // 2)[0]
    nowhere = jnp.zeros((k, len(x_NM)), jnp.int32)
    place_Nk = lax.scan(put, nowhere, (jnp.arange(size), rank_MN), unroll=UNROLL)[0].T
    return jnp.take_along_axis(x_NM, place_Nk, -1), place_Nk
