"""Row-wise reads and writes under static shapes.

They go through vmap, because indexing with `arange(B)[:, None]` makes a partitioned program gather the whole array on every
device. If indices are NumPy arrays, the same in all rows, and consecutive, `take`, `put` and `slice_rows` become slices.

B stream, M slots, T entries, K pieces of a text.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding

from memtx.ops.context import AXIS, PIECES, WHOLE, is_divided, on_pieces
from memtx.ops.per_device import mesh_here


def take(a_BM: Array, index_BT: Array | np.ndarray) -> Array:
    """Return each row's entries at its own indices: [B, M, ...], [B, T] -> [B, T, ...]."""
    start = slice_start(index_BT, a_BM.shape[1])
    if start is not None:
        return lax.slice_in_dim(a_BM, start, start + index_BT.shape[1], axis=1)
    return jax.vmap(lambda a, i: a[i])(a_BM, index_BT)


def lookup(table_VD: Array, index_BT: Array) -> Array:
    """Return the rows of a table, [V, D], [B, T] -> [B, T, D]."""
    mesh = mesh_here(index_BT)
    if mesh is not None and is_divided(index_BT):  # or XLA would gather the whole text's gradient
        table_VD = lax.with_sharding_constraint(table_VD, NamedSharding(mesh, WHOLE))
        return on_pieces(lambda table, index: table[index], (WHOLE, PIECES), PIECES, table_VD, index_BT)
    return table_VD[index_BT]


def put(a_BM: Array, index_BT: Array | np.ndarray, new_BT: Array) -> Array:
    """Write each row at its own indices, which must differ. Indices out of range are dropped, and the dtype of `a_BM` is kept.

    Indices out of range are also made distinct, so that JAX may assume unique indices. Otherwise it would have to find, for the
    value and for the gradient, which of two writes was last.
    """
    size, time = a_BM.shape[1], index_BT.shape[1]
    start = slice_start(index_BT, size)
    if start is not None:
        return lax.dynamic_update_slice_in_dim(a_BM, new_BT.astype(a_BM.dtype), start, axis=1)
    index_BT = jnp.where(index_BT < size, index_BT, size + jnp.arange(time))
    write = lambda a, i, x: a.at[i].set(x.astype(a.dtype), mode="drop", unique_indices=True)  # noqa: E731
    return jax.vmap(write)(a_BM, index_BT, new_BT)


def slice_start(index_BT: Array | np.ndarray, size: int) -> int | None:
    """Return the first index if all rows have the same consecutive indices below `size` at compile time, or else None."""
    if not isinstance(index_BT, np.ndarray) or not index_BT.size:
        return None
    start, time = int(index_BT[0, 0]), index_BT.shape[1]
    consecutive = (index_BT == start + np.arange(time)).all() and 0 <= start <= size - time
    return start if consecutive else None


def slice_rows(a_BM: Array, start_B: Array | np.ndarray, size: int) -> Array:
    """Return `size` consecutive entries of each row, from its own start: [B, M, ...] -> [B, size, ...]."""
    if isinstance(start_B, np.ndarray) and (start_B == start_B[0]).all():
        return lax.slice_in_dim(a_BM, int(start_B[0]), int(start_B[0]) + size, axis=1)
    return jax.vmap(lambda a, i: lax.dynamic_slice_in_dim(a, i, size))(a_BM, start_B)


def shift(old_BM: Array, new_BT: Array, length_B: Array) -> Array:
    """Append the first length_B of the new entries to each row, drop its oldest, and keep the dtype of `old_BM`."""
    if is_divided(new_BT):
        return on_pieces(_shift_piece, (WHOLE, PIECES, WHOLE), WHOLE, old_BM, new_BT, length_B)
    joined = jnp.concatenate([old_BM, new_BT.astype(old_BM.dtype)], 1)
    return slice_rows(joined, length_B, old_BM.shape[1])


def _shift_piece(old_BM: Array, new_BT: Array, length_B: Array) -> Array:
    """Compute `shift` on devices that each have a piece of the new entries. Each entry comes from the device that has it."""
    size, time, piece = old_BM.shape[1], new_BT.shape[1], lax.axis_index(AXIS)
    new_BM = length_B[:, None] + jnp.arange(size) - size  # the index of each result in the new entries, negative in the old
    here_BM = new_BM - piece * time
    mine_BM = jnp.where(new_BM < 0, piece == 0, (here_BM >= 0) & (here_BM < time))
    joined = jnp.concatenate([old_BM, new_BT.astype(old_BM.dtype)], 1)
    found_BM = take(joined, jnp.where(mine_BM, size + jnp.where(new_BM < 0, new_BM, here_BM), 0))
    return lax.psum(jnp.where(mine_BM.reshape(*mine_BM.shape, *[1] * (old_BM.ndim - 2)), found_BM, 0), AXIS)


def cut(a_BT: Array, pieces: int) -> Array:
    """Cut rows into pieces of one length, [B, T, ...] -> [K, B, T / K, ...], with zeros after their end."""
    batch, time, *rest = a_BT.shape
    padded = jnp.pad(a_BT, [(0, 0), (0, -time % pieces), *[(0, 0)] * len(rest)])
    return padded.reshape(batch, pieces, -1, *rest).swapaxes(0, 1)


def joined(a_KBT: Array) -> Array:
    """Put pieces one after another, [K, B, T / K, ...] -> [B, T, ...]."""
    return a_KBT.swapaxes(0, 1).reshape(a_KBT.shape[1], -1, *a_KBT.shape[3:])
