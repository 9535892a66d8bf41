"""Top-k over sums of two lists is exact, differentiable through the chosen entries, and stays on its device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.contract.case import gathers, mesh, shard
from memtx.ops.product import product_top_k, top_k


def brute_force(left, right, k: int):
    """All n^2 sums in float64."""
    sums = (left[:, :, None].astype(float) + right[:, None, :]).reshape(len(left), -1)
    order = np.argsort(-sums, 1)[:, :k]
    return np.take_along_axis(sums, order, 1), order


@pytest.mark.parametrize(("n", "k"), [(1, 1), (4, 3), (4, 12), (4, 16), (20, 32), (64, 16)])
def test_product_top_k_is_brute_force_over_all_pairs(n, k):
    left, right = np.random.default_rng(n * k).normal(size=(2, 200, n)).astype(np.float32)
    score, index = jax.jit(product_top_k, static_argnums=2)(left, right, k)
    expected, order = brute_force(left, right, k)
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(score, expected, atol=1e-6)


def test_ties_give_the_same_scores_and_no_entry_twice():
    left, right = np.random.default_rng(0).integers(0, 3, (2, 100, 8)).astype(np.float32)
    score, index = product_top_k(left, right, 12)
    np.testing.assert_array_equal(score, brute_force(left, right, 12)[0])
    assert all(len(set(row)) == 12 for row in np.asarray(index))


def test_control_fewer_candidates_are_not_enough():
    """The best 3 of each list, of which only the best pair each, miss some of the 3 best sums."""
    left, right = np.random.default_rng(0).normal(size=(2, 100, 8))
    diagonal = np.sort(left)[:, ::-1][:, :3] + np.sort(right)[:, ::-1][:, :3]
    assert (np.abs(diagonal - brute_force(left, right, 3)[0]).max(1) > 1e-6).any()


def test_the_gradient_goes_to_what_was_chosen():
    left, right, weight = np.random.default_rng(1).normal(size=(3, 5, 6))
    grads = jax.grad(lambda a, b: (product_top_k(a, b, 6)[0] * weight).sum(), argnums=(0, 1))(left, right)
    expected = np.zeros((2, 5, 6))
    for row, chosen in enumerate(brute_force(left.astype(np.float32), right.astype(np.float32), 6)[1]):
        for w, index in zip(weight[row], chosen, strict=True):
            expected[0, row, index // 6] += w
            expected[1, row, index % 6] += w
    np.testing.assert_allclose(jnp.stack(grads), expected, atol=1e-5)
    assert (expected == 0).any()


def test_top_k_of_any_leading_axes():
    x = np.random.default_rng(2).normal(size=(2, 3, 9)).astype(np.float32)
    value, index = top_k(x, 4)
    np.testing.assert_array_equal(value, np.sort(x)[..., ::-1][..., :4])
    np.testing.assert_array_equal(np.take_along_axis(x, np.asarray(index), -1), value)


@pytest.mark.skipif("config.getoption('devices') == 1", reason="needs --devices=8")
def test_rows_stay_on_their_device():
    assert mesh()
    left, right = shard(tuple(np.random.default_rng(3).normal(size=(2, 4, 16, 2, 8)).astype(np.float32)))
    call = jax.jit(product_top_k, static_argnums=2)
    assert gathers(call.lower(left, right, 5).compile().as_text()) == []
    one = call(*(np.asarray(a) for a in (left, right)), 5)
    assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(call(left, right, 5), one, strict=True))
    assert gathers(jax.jit(lambda a: jax.lax.top_k(a, 5)).lower(left).compile().as_text())  # control
