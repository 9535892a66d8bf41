"""The feature map of linear attention and of Infini-attention."""

import jax
import numpy as np

from memtx.nn.linear import elu_plus_one


def test_elu_plus_one_and_its_gradient_are_elu_s_at_zero_too():
    x = np.array([-200.0, -3.0, -1e-6, -0.0, 0.0, 1e-6, 3.0, 200.0], np.float32)
    wide = x.astype(np.float64)
    below = np.exp(np.minimum(wide, 0))
    y, slope = jax.vmap(jax.value_and_grad(elu_plus_one))(x)
    np.testing.assert_allclose(y, np.where(wide > 0, wide + 1, below), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(slope, np.where(wide > 0, 1, below), rtol=1e-6, atol=1e-30)
