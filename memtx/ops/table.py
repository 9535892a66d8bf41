"""Reads of a few rows of a large table for each of many queries, with gradients, without an [N, R, D] array of the rows.

    pool(table, index, weight)_n = sum_r weight_nr table[index_nr]            (an embedding bag)
    dots(table, index, x)_nr     = <table[index_nr], x_n>

Each is the derivative of the other: d pool / d weight is dots, and d dots / d x is pool. The gradient of the table, for both,
adds weight_nr x_n to row index_nr. All three loop over the columns of `index` in order (pool takes several at once), so they
need N D numbers of memory instead of N R D. They are faster than a gather of all rows with an einsum, and than a product with
N x M weights.

On a mesh each device reads or adds up the rows of the local queries from the whole table. The gradient of the table is summed
once.

N queries, R rows read by each, M rows of the table, D features. All arithmetic is in float32.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from memtx.ops.per_device import per_device

AT_ONCE = 8  # columns that pool adds in one pass over its sums; dots and spread gain nothing from this


def rows(table_MD: Array, index_N: Array) -> Array:
    """Return the rows of a table at these indices, which must be in range."""
    return table_MD.at[index_N].get(mode="promise_in_bounds")


@jax.custom_vjp
@per_device("m d, n r, n r -> n d")
def pool(table_MD: Array, index_NR: Array, weight_NR: Array) -> Array:
    """Return weighted sums of rows, [N, D]."""

    def add(y_ND, column):
        index_N, weight_N = column
        return y_ND + weight_N[:, None] * rows(table_MD, index_N), None

    start = jnp.zeros((index_NR.shape[0], table_MD.shape[1]), jnp.float32)
    return lax.scan(add, start, (index_NR.T, weight_NR.T), unroll=AT_ONCE)[0]


@jax.custom_vjp
@per_device("m d, n r, n d -> n r")
def dots(table_MD: Array, index_NR: Array, x_ND: Array) -> Array:
    """Return the inner products of each query with its rows, [N, R]."""

    def column(_, index_N):
        return None, (rows(table_MD, index_N) * x_ND).sum(-1)

    return lax.scan(column, None, index_NR.T)[1].T


@partial(jax.custom_vjp, nondiff_argnums=(3,))
@per_device("n r, n r, n d -> m d")
def spread(index_NR: Array, weight_NR: Array, x_ND: Array, size: int) -> Array:
    """Return a table [size, D] of zeros with weight_nr x_n added to row index_nr."""

    def add(table_MD, column):
        index_N, weight_N = column
        return table_MD.at[index_N].add(weight_N[:, None] * x_ND, mode="promise_in_bounds"), None

    start = jnp.zeros((size, x_ND.shape[1]), jnp.float32)
    return lax.scan(add, start, (index_NR.T, weight_NR.T))[0]


def _pool_backward(saved, dy_ND):
    table_MD, index_NR, weight_NR = saved
    return spread(index_NR, weight_NR, dy_ND, len(table_MD)), None, dots(table_MD, index_NR, dy_ND)


def _dots_backward(saved, dy_NR):
    table_MD, index_NR, x_ND = saved
    return spread(index_NR, dy_NR, x_ND, len(table_MD)), None, pool(table_MD, index_NR, dy_NR)


def _spread_backward(size, saved, dy_MD):
    index_NR, weight_NR, x_ND = saved
    return None, dots(dy_MD, index_NR, x_ND), pool(dy_MD, index_NR, weight_NR)


pool.defvjp(lambda *a: (pool(*a), a), _pool_backward)
dots.defvjp(lambda *a: (dots(*a), a), _dots_backward)
spread.defvjp(lambda *a: (spread(*a), a[:3]), _spread_backward)
