"""Reads of a table's rows equal matmuls with one-hot weights, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.ops.table import dots, pool

N, R, M, D = 6, 5, 7, 3


def one_hot(index_NR):
    return jax.nn.one_hot(index_NR, M)


def pool_by_matmul(table_MD, index_NR, weight_NR):
    return jnp.einsum("nr,nrm,md->nd", weight_NR, one_hot(index_NR), table_MD)


def dots_by_matmul(table_MD, index_NR, x_ND):
    return jnp.einsum("nrm,md,nd->nr", one_hot(index_NR), table_MD, x_ND)


@pytest.mark.parametrize(("f", "by_matmul", "size"), [(pool, pool_by_matmul, R), (dots, dots_by_matmul, D)])
def test_a_read_is_a_one_hot_matmul(f, by_matmul, size):
    rng = np.random.default_rng(0)
    table, other, index = rng.normal(size=(M, D)), rng.normal(size=(N, size)), rng.integers(0, M, (N, R))
    index[0] = index[0, 0]  # the same row several times

    def both(f):
        loss = lambda table, other: jnp.sin(f(table, index, other)).sum()  # noqa: E731
        return f(table, index, other), jax.grad(loss, argnums=(0, 1))(table, other)

    table, other, index = (jnp.asarray(a, t) for a, t in ((table, jnp.float32), (other, jnp.float32), (index, jnp.int32)))
    for a, b in zip(jax.tree.leaves(both(f)), jax.tree.leaves(both(by_matmul)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
        assert np.abs(b).max() > 0.1


def test_nothing_the_size_of_all_rows_is_kept():
    """The program of a gradient holds less than one [N, R, D] array; that of the plain gather more."""
    n, r, m, d = 512, 64, 16, 64
    shapes = [jax.ShapeDtypeStruct(*a) for a in (((m, d), jnp.float32), ((n, r), jnp.int32), ((n, r), jnp.float32))]

    def temporary(f):
        gradient = jax.grad(lambda table, index, weight: jnp.sin(f(table, index, weight)).sum(), argnums=(0, 2))
        return jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    gathered = lambda table, index, weight: jnp.einsum("nr,nrd->nd", weight, table[index])  # noqa: E731
    assert temporary(pool) < 4 * n * r * d < temporary(gathered)
