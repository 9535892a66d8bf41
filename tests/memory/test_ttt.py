"""TTT against equal computations: gradients by jax.grad, and linear attention."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.memory.ttt import TTTMLP, TTTLinear, layer_norm, train_and_read
from memtx.ops.delta import delta_rule

BATCH, HEADS, TIME, H = 2, 3, 6, 4


def draw(seed: int, *shape: int):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def norm(z):
    return layer_norm(1 + 0.3 * draw(7, HEADS, 1, H), draw(8, HEADS, 1, H), z)


def network(depth: int):
    sizes = [(H, 5), (5, H)][-depth:] if depth == 2 else [(H, H)]
    return tuple((draw(i, BATCH, HEADS, d, e), draw(i + 10, BATCH, HEADS, 1, e)) for i, (d, e) in enumerate(sizes))


def forward(layers, z):
    for i, (w, b) in enumerate(layers):
        z = (jax.nn.gelu(z) if i else z) @ w + b
    return z


@pytest.mark.thorough
@pytest.mark.parametrize("depth", [1, 2])
def test_the_inner_gradient_is_the_gradient_of_the_inner_loss(depth):
    layers, (q, k, v) = network(depth), (draw(i, BATCH, HEADS, TIME, H) for i in (20, 21, 22))
    rate, row = jax.nn.sigmoid(draw(23, BATCH, HEADS, TIME, 1)), 1 / jnp.arange(1.0, TIME + 1)[:, None]
    zero = jax.tree.map(jnp.zeros_like, layers)

    def loss(layers, upto):
        error = norm(forward(layers, k)) - (v - k)
        return 0.5 * jnp.where(jnp.arange(TIME)[:, None] < upto, rate * error**2, 0).sum()

    o, gradient = jax.jit(lambda: train_and_read(layers, zero, q, k, v, rate, row, norm))()
    grad = jax.jit(jax.grad(loss))
    expected = grad(layers, TIME)
    for got, want in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5)
    read = jax.jit(lambda layers, y: y + norm(forward(layers, y)))
    for t in range(TIME):  # each token reads the weights that the tokens up to it have trained
        now = jax.tree.map(lambda w, g, t=t: w - row[t] * g, layers, grad(layers, t + 1))
        y = q[..., t : t + 1, :]
        np.testing.assert_allclose(o[..., t : t + 1, :], read(now, y), atol=5e-5)
    assert float(jnp.abs(expected[0][0]).max()) > 0.1  # control: there is something to learn


def test_without_norm_and_from_zero_ttt_linear_is_linear_attention():
    """Theorem 1 of the paper; the bias is a key dimension that is always 1."""
    q, k, v = (draw(i, BATCH, HEADS, TIME, H) for i in (20, 21, 22))
    zero = ((jnp.zeros((BATCH, HEADS, H, H)), jnp.zeros((BATCH, HEADS, 1, H))),)

    @partial(jax.jit, static_argnums=0)
    def train(norm):
        return train_and_read(zero, zero, q, k, v, jnp.full((), 0.5), jnp.ones(()), norm)

    o, _ = train(lambda z: z)
    one = jnp.ones((BATCH, TIME, HEADS, 1))
    by_time = [x.swapaxes(1, 2) for x in (q, k, 0.5 * (v - k))]
    augmented = (jnp.concatenate([by_time[0], one], -1), jnp.concatenate([by_time[1], one], -1), by_time[2])
    read, _ = jax.jit(delta_rule)(*augmented, jnp.zeros((BATCH, HEADS, H + 1, H)))
    np.testing.assert_allclose(o, q + read.swapaxes(1, 2), atol=1e-5)
    o, _ = train(norm)
    assert float(jnp.abs(o - q - read.swapaxes(1, 2)).max()) > 0.1  # control: with the norm it is not


def test_sizes_that_cannot_be_are_refused_in_one_line():
    for config in (TTTLinear.Config, TTTMLP.Config):
        with pytest.raises(Exception, match="mini_batch must be at least 1"):
            config(mini_batch=0)
        with pytest.raises(Exception, match="base_lr must be above 0"):
            config(base_lr=0.0)
