"""Row-wise reads and writes under static shapes.

All go through vmap: indexing with `arange(B)[:, None]` makes a partitioned program gather the whole memory on every device.
B stream, M slots, T entries.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax


def take(a_BM: Array, index_BT: Array) -> Array:
    """Each row's entries at its own indices: [B, M, ...], [B, T] -> [B, T, ...]."""
    return jax.vmap(lambda a, i: a[i])(a_BM, index_BT)


def put(a_BM: Array, index_BT: Array, new_BT: Array) -> Array:
    """Each row written at its own indices; an index out of range is dropped. The memory's dtype is kept."""
    return jax.vmap(lambda a, i, x: a.at[i].set(x.astype(a.dtype), mode="drop"))(a_BM, index_BT, new_BT)


def slice_rows(a_BM: Array, start_B: Array, size: int) -> Array:
    """`size` consecutive entries of each row, from its own start: [B, M, ...] -> [B, size, ...]."""
    return jax.vmap(lambda a, i: lax.dynamic_slice_in_dim(a, i, size))(a_BM, start_B)


def shift(old_BM: Array, new_BT: Array, length_B: Array) -> Array:
    """The last M of each row's old entries and the first length_B of its new ones, in old's dtype: oldest out, newest last."""
    joined = jnp.concatenate([old_BM, new_BT.astype(old_BM.dtype)], 1)
    return slice_rows(joined, length_B, old_BM.shape[1])
