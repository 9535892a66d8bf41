"""Titans' memory: the closed form of a chunk is gradient descent, token by token; known special cases; long runs stay finite.

B stream, T time, N heads, Q slots, H head dim.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memtx.contract.case import DIMS
from memtx.core import segment
from memtx.errors import UserError
from memtx.memory import titans
from memtx.memory.titans import Gates, NeuralMemory, Settings, apply, gradient

learn = jax.jit(titans.learn, static_argnames="clip")
B, N, H, E = 2, 3, 4, 6


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def weights(depth: int, seed: int = 0, scale: float = 0.5):
    sizes = [H, *[E] * (depth - 1), H]
    return tuple(scale * draw(seed + i, B, N, sizes[i], sizes[i + 1]) for i in range(depth))


def tokens(time: int):
    q, k, v = (draw(10 + i, B, N, time, H) / 2 for i in range(3))
    theta, alpha, eta = (jax.nn.sigmoid(draw(20 + i, B, N, time)) for i in range(3))
    return q, k, v, Gates(0.1 * theta, jnp.log1p(-alpha), jnp.log(eta), jnp.ones((B, N, time)))


def part(tree, start: int, stop: int):
    return jax.tree.map(lambda a: a[:, :, start:stop], tree)


def loss(weights, k_BNH, v_BNH):
    return ((apply(weights, k_BNH[:, :, None])[:, :, 0] - v_BNH) ** 2).sum()


@partial(jax.jit, static_argnames="clip")
def sequential(now, start, momentum, q, k, v, gates, clip=0.0):
    """One token after the other, gradients by autodiff at the weights of the start."""
    outs = []
    for t in range(q.shape[2]):
        theta, keep, eta = (
            f(gate[:, :, t, None, None])
            for f, gate in ((lambda x: x, gates.theta_BNQ), (jnp.exp, gates.log_keep_BNQ), (jnp.exp, gates.log_eta_BNQ))
        )
        grads = jax.grad(loss)(start, k[:, :, t], v[:, :, t])
        if clip:
            norm = jnp.sqrt(sum((g**2).sum((-2, -1), keepdims=True) for g in grads))
            theta = theta * jnp.minimum(1, clip / norm)
        momentum = tuple(eta * s - theta * g for s, g in zip(momentum, grads, strict=True))
        now = tuple(keep * w + s for w, s in zip(now, momentum, strict=True))
        outs.append(apply(now, q[:, :, t : t + 1]))
    return now, momentum, jnp.concatenate(outs, 2)


def assert_close(a, b):
    for m, n in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(m, n, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_gradient_of_rank_one_is_that_of_autodiff(depth):
    w, k, v = weights(depth), draw(8, B, N, 1, H), draw(9, B, N, 1, H)
    inputs, errors = gradient(w, k, v)
    outer = tuple(jnp.einsum("BNQI,BNQO->BNIO", a, d) for a, d in zip(inputs, errors, strict=True))
    assert_close(outer, jax.grad(loss)(w, k[:, :, 0], v[:, :, 0]))


@pytest.mark.parametrize("depth", [1, 3])
def test_a_chunk_is_descent_token_by_token_from_the_weights_of_its_start(depth):
    now, start, momentum = weights(depth, 0), weights(depth, 30), weights(depth, 60, 0.1)
    given = tokens(6)
    expected = sequential(now, start, momentum, *given)
    assert_close(learn(now, start, momentum, *given), expected)
    clipped = learn(now, start, momentum, *given, clip=0.5)
    assert_close(clipped, sequential(now, start, momentum, *given, clip=0.5))
    assert np.abs(clipped[2] - expected[2]).max() > 1e-3  # control: there is something to clip
    moving = learn(now, now, momentum, *given)  # control: gradients at other weights
    assert np.abs(moving[2] - expected[2]).max() > 1e-3


def test_a_chunk_may_come_in_parts_and_with_empty_slots():
    now, start, momentum = weights(2, 0), weights(2, 30), weights(2, 60, 0.1)
    given = tokens(6)
    whole = learn(now, start, momentum, *given)
    *first, y_first = learn(now, start, momentum, *part(given, 0, 2))
    q, k, v, gates = part(given, 2, 6)
    q, k, v = (jnp.concatenate([a, jnp.full_like(a, 9.0)], 2) for a in (q, k, v))  # junk where there is no token
    empty = jax.tree.map(lambda gate: jnp.concatenate([gate, jnp.zeros_like(gate)], 2), gates)
    *second, y_second = learn(first[0], start, first[1], q, k, v, empty)
    assert_close((*second, jnp.concatenate([y_first, y_second[:, :, :4]], 2)), whole)


def test_linear_memory_in_chunks_of_one_is_the_gated_delta_rule():
    """beta = 2 theta / (1 - alpha), v' = (1 - alpha) v: Titans takes the gradient before the decay, the delta rule after it."""
    q, k, v, gates = tokens(12)
    w, outs = weights(1), []
    for t in range(12):
        w, _, y = learn(w, w, (), *part((q, k, v, gates), t, t + 1))
        outs.append(y[:, :, 0])

    def delta_rule(beta, value):
        s = np.asarray(weights(1)[0], np.float64)
        keep = np.exp(np.asarray(gates.log_keep_BNQ, np.float64))
        for t in range(12):
            s = s * keep[:, :, t, None, None]
            error = value[:, :, t] - np.einsum("bnij,bni->bnj", s, k[:, :, t])
            s = s + np.einsum("bni,bnj->bnij", k[:, :, t], beta[:, :, t, None] * error)
            yield np.einsum("bnij,bni->bnj", s, q[:, :, t])

    keep, theta = (np.asarray(a, np.float64) for a in (jnp.exp(gates.log_keep_BNQ), gates.theta_BNQ))
    expected = list(delta_rule(2 * theta / keep, keep[..., None] * v))
    np.testing.assert_allclose(outs, expected, atol=2e-6)
    assert np.abs(np.stack(list(delta_rule(2 * theta, np.asarray(v)))) - expected).max() > 1e-3  # control: the naive map


def largest(config: Settings, size: float, calls: int) -> float:
    """The largest entry of the memory after many calls of 16 tokens."""
    layer = NeuralMemory(config, DIMS, jax.random.key(0))
    graph, params = nnx.split(layer)

    @jax.jit
    def run():
        def step(state, key):
            x = size * jax.random.normal(key, (2, 16, DIMS.width))
            y, state = nnx.merge(graph, params)(x, state, segment(jnp.zeros((2, 16), jnp.int32)))
            return state, jnp.abs(y).max()

        (fast, _), ys = jax.lax.scan(step, layer.init_state(2), jax.random.split(jax.random.key(1), calls))
        return jnp.stack([ys.max(), *(jnp.abs(w).max() for w in (*fast.now, *fast.momentum))]).max()

    return float(run())


@pytest.mark.thorough
def test_depth_four_stays_bounded_over_many_steps():
    assert largest(Settings(chunk=8, depth=4), 1.0, 2000) < 100  # a NaN fails too


@pytest.mark.thorough
def test_clipped_gradients_bound_what_inputs_of_any_size_do():
    assert largest(Settings(chunk=8, depth=4), 100.0, 100) < 1000
    assert not largest(Settings(chunk=8, depth=4, clip=0.0), 100.0, 100) < 1000  # control


@pytest.mark.parametrize("wrong", [{"depth": 5}, {"depth": 0}, {"chunk": 0}, {"conv": 0}, {"lr": 0.0}, {"clip": -1.0}])
def test_settings_out_of_range_are_clear_errors(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Settings(**wrong)


@pytest.mark.thorough
@pytest.mark.parametrize("off", [{"momentum": False}, {"forget": False}, {"conv": 1}])
def test_parts_can_be_left_out(off):
    """Cut anywhere, the layer gives the same, also without one of its parts."""
    layer = NeuralMemory(Settings(chunk=4, **off), DIMS, jax.random.key(0))
    x = draw(0, 2, 8, DIMS.width)

    @partial(jax.jit, static_argnums=0)
    def run(cuts):
        state, outs, start = layer.init_state(2), [], 0
        for time in cuts:
            y, state = layer(x[:, start : start + time], state, segment(jnp.zeros((2, time), jnp.int32)))
            outs.append(y)
            start += time
        return jnp.concatenate(outs, 1), state

    assert_close(run((8,)), run((3, 5)))
