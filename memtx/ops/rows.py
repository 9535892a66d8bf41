"""Row-wise reads and writes under static shapes.

Reads and writes go through vmap: indexing with `arange(B)[:, None]` makes a partitioned program gather the whole memory on
every device.
B stream, M slots, T entries, N rows.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

SIDE_BY_SIDE = 2  # calls of one top-k; more gain nothing on two cores
FEW = 256  # rows that are not worth dividing
SHORT = (
    128  # entries of a row, that are compared sooner than sorted: 4.4 to 11.6 ms (4,096 rows, two cores); 256 take 15.3 to 16.2
)
UNROLL = 16  # entries that are compared, or put in their places, in one pass


def take(a_BM: Array, index_BT: Array) -> Array:
    """Each row's entries at its own indices: [B, M, ...], [B, T] -> [B, T, ...]."""
    return jax.vmap(lambda a, i: a[i])(a_BM, index_BT)


def put(a_BM: Array, index_BT: Array, new_BT: Array) -> Array:
    """Each row written at its own indices, no two of which are the same; an index out of range is dropped. The memory's dtype
    is kept.

    JAX is told that they differ, those out of range too: else it works out, value and gradient, which of two writes was last.
    """
    size, time = a_BM.shape[1], index_BT.shape[1]
    index_BT = jnp.where(index_BT < size, index_BT, size + jnp.arange(time))
    write = lambda a, i, x: a.at[i].set(x.astype(a.dtype), mode="drop", unique_indices=True)  # noqa: E731
    return jax.vmap(write)(a_BM, index_BT, new_BT)


def slice_rows(a_BM: Array, start_B: Array, size: int) -> Array:
    """`size` consecutive entries of each row, from its own start: [B, M, ...] -> [B, size, ...]."""
    return jax.vmap(lambda a, i: lax.dynamic_slice_in_dim(a, i, size))(a_BM, start_B)


def shift(old_BM: Array, new_BT: Array, length_B: Array) -> Array:
    """The last M of each row's old entries and the first length_B of its new ones, in old's dtype: oldest out, newest last."""
    joined = jnp.concatenate([old_BM, new_BT.astype(old_BM.dtype)], 1)
    return slice_rows(joined, length_B, old_BM.shape[1])


def select(x_NM: Array, k: int) -> tuple[Array, Array]:
    """`lax.top_k` along the last axis of whatever rows there are, on one device.

    On a CPU, where XLA sorts with one core a call, the same by comparisons, if rows are short, else in two calls.
    """
    rows_NM = x_NM.reshape(-1, x_NM.shape[-1])
    short = rows_NM.shape[1] <= SHORT and rows_NM.dtype == jnp.float32
    on_cpu, elsewhere = by_rank if short else by_halves, lambda x_NM, k: tuple(lax.top_k(x_NM, k))
    score_Nk, place_Nk = lax.platform_dependent(rows_NM, cpu=partial(on_cpu, k=k), default=partial(elsewhere, k=k))
    return score_Nk.reshape(*x_NM.shape[:-1], k), place_Nk.reshape(*x_NM.shape[:-1], k)


def by_halves(x_NM: Array, k: int) -> tuple[Array, Array]:
    """`lax.top_k` in calls that can run side by side."""
    size = max(-(-len(x_NM) // SIDE_BY_SIDE), FEW)
    parts = [lax.top_k(x_NM[i : i + size], k) for i in range(0, len(x_NM), size)]
    score_Nk, place_Nk = (jnp.concatenate(a) for a in zip(*parts, strict=True))
    return score_Nk, place_Nk


def by_rank(x_NM: Array, k: int) -> tuple[Array, Array]:
    """`lax.top_k` of float32, from how many entries of its row each comes after: M^2 comparisons, in vectors and on all cores.

    A later entry comes first if it is larger, an earlier one if it is no smaller: as integers, if it is larger when 1 is added.
    """
    bits_MN = lax.bitcast_convert_type(x_NM, jnp.int32).T
    key_MN = bits_MN ^ (lax.shift_right_arithmetic(bits_MN, 31) & 0x7FFFFFFF)  # integers in the order of the floats
    key_MN = jnp.pad(key_MN, ((0, -len(key_MN) % UNROLL), (0, 0)), constant_values=jnp.iinfo(jnp.int32).min)
    size = len(key_MN)
    others = jnp.concatenate([key_MN, key_MN + 1])  # from m + 1 on, the M - 1 others of entry m: later ones, then earlier ones

    def compare(rank_MN, shift):
        return rank_MN + (lax.dynamic_slice_in_dim(others, shift, size) > key_MN), None

    def put(place_kN, entry):
        m, rank_N = entry
        return jnp.where(rank_N == jnp.arange(k)[:, None], m, place_kN), None

    rank_MN = lax.scan(compare, jnp.zeros_like(key_MN), jnp.arange(1, size), unroll=UNROLL // 2)[0]
    nowhere = jnp.zeros((k, len(x_NM)), jnp.int32)
    place_Nk = lax.scan(put, nowhere, (jnp.arange(size), rank_MN), unroll=UNROLL)[0].T
    return jnp.take_along_axis(x_NM, place_Nk, -1), place_Nk
