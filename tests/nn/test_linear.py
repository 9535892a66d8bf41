"""Linear maps in halves, and the feature map of linear attention and of Infini-attention."""

import jax
import numpy as np
import pytest

from memtx.nn.linear import Linear, elu_plus_one


def test_elu_plus_one_and_its_gradient_are_elu_s_at_zero_too():
    x = np.array([-200.0, -3.0, -1e-6, -0.0, 0.0, 1e-6, 3.0, 200.0], np.float32)
    wide = x.astype(np.float64)
    below = np.exp(np.minimum(wide, 0))
    y, slope = jax.vmap(jax.value_and_grad(elu_plus_one))(x)
    np.testing.assert_allclose(y, np.where(wide > 0, wide + 1, below), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(slope, np.where(wide > 0, 1, below), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("bias", [False, True])
def test_halves_are_the_halves_of_the_whole(bias):
    linear, x = Linear(jax.random.key(0), 5, 6, bias=bias), jax.random.normal(jax.random.key(1), (2, 3, 5))
    if linear.b is not None:
        linear.b[...] = np.arange(6.0)
    for half, expected in zip(linear.halves(x), np.split(np.asarray(linear(x)), 2, -1), strict=True):
        np.testing.assert_allclose(half, expected, rtol=1e-6, atol=1e-6)
