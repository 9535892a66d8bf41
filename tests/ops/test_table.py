"""Reads of a table's rows equal matmuls with one-hot weights, in values and gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from memtx.contract.case import gathers, mesh, shard
from memtx.ops.table import dots, pool, rows

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
        gradient = jax.grad(loss, argnums=(0, 1))
        twice = jax.grad(lambda *a: sum(jnp.cos(g).sum() for g in gradient(*a)), argnums=(0, 1))
        return f(table, index, other), gradient(table, other), twice(table, other)

    table, other, index = (jnp.asarray(a, t) for a, t in ((table, jnp.float32), (other, jnp.float32), (index, jnp.int32)))
    for ours, theirs, rtol in zip(both(f), both(by_matmul), (1e-7, 1e-7, 1e-4), strict=True):  # second derivatives are up to 20
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=rtol, atol=2e-6)
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


def in_loops(hlo: str) -> list[str]:
    """Collectives inside the loops of a compiled program that move more than scalars."""
    parts = dict(re.findall(r"^%(\S+) (\(.*?^)}", hlo, re.M | re.S))
    bodies = re.findall(r"body=%([\w.-]+)", hlo)
    return [found for body in bodies for found in gathers(parts[body])]


@pytest.mark.skipif("config.getoption('devices') == 1", reason="needs --devices=8")
@pytest.mark.parametrize("axes", [(), ("data",), (None, "data")], ids=["whole", "rows divided", "features divided"])
def test_devices_share_a_table_once_and_not_in_every_turn(axes):
    rng = np.random.default_rng(4)
    n, m, d = 16, 8, 4
    table, weight, x = (rng.normal(size=size).astype(np.float32) for size in ((m, d), (n, 64), (n, d)))
    index = rng.integers(0, m, (n, 64), dtype=np.int32)
    layout = NamedSharding(mesh(), PartitionSpec(*axes))

    def loss(table, weight, x, index):
        return jnp.sin(pool(table, index, weight)).sum() + jnp.sin(dots(table, index, x)).sum()

    def plain(table, weight, x, index):
        add = lambda y, column: (y + column[1][:, None] * rows(table, column[0]), None)  # noqa: E731
        return jnp.sin(jax.lax.scan(add, jnp.zeros_like(x), (index.T, weight.T))[0]).sum()

    given = (jax.device_put(table, layout), *shard((weight, x, index)))
    run, control = (jax.jit(jax.grad(f, (0, 1, 2)), out_shardings=(layout, None, None)) for f in (loss, plain))
    hlo = run.lower(*given).compile().as_text()
    assert in_loops(hlo) == []
    assert gathers(hlo)  # the table's gradient is summed, and a divided one gathered
    assert in_loops(control.lower(*given).compile().as_text())
    one = jax.grad(loss, (0, 1, 2))(table, weight, x, index)
    for a, b in zip(run(*given), one, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=5e-5, atol=5e-6)
