"""The matrix memories: long text, 16-bit inputs, options, and settings that cannot be."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memtx.contract.case import BATCH, DIMS
from memtx.core import Dims, segment
from memtx.errors import UserError
from memtx.memory.delta import KDA, DeltaNet, GatedDeltaNet
from memtx.memory.linear import GLA, LinearAttention, MatrixMemory, RetNet
from memtx.nn.positions import rope
from memtx.ops.delta import delta_rule

ALL = [LinearAttention, RetNet, GLA, DeltaNet, GatedDeltaNet, KDA]


@functools.cache
def jitted(graph):
    """The compiled call of all layers with the same structure."""
    return jax.jit(lambda params, x, state, seg: nnx.merge(graph, params)(x, state, seg))


def run(layer, x_BTD, start: int = 0, state=None):
    state = layer.init_state(BATCH) if state is None else state
    position = np.broadcast_to(start + np.arange(x_BTD.shape[1]), x_BTD.shape[:2])
    graph, params = nnx.split(layer)
    return jitted(graph)(params, x_BTD, state, segment(position))


def text(time: int, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(time).normal(size=(BATCH, time, DIMS.width)), dtype)


@pytest.mark.parametrize("cls", ALL)
def test_long_text_in_bfloat16_stays_finite_and_near_float32(cls):
    layer = cls(cls.Config(), DIMS, jax.random.key(0))
    x = text(300, jnp.bfloat16)
    (y, state), (exact, _) = run(layer, x), run(layer, x.astype(jnp.float32))
    assert y.dtype == jnp.bfloat16
    assert state.s_BNKV.dtype == jnp.float32
    assert np.isfinite(np.asarray(state.s_BNKV)).all()
    error = jnp.abs(y.astype(jnp.float32) - exact).max() / jnp.abs(exact).max()
    assert float(error) < 0.1
    assert float(jnp.abs(exact[:, -1]).max()) > 1e-3  # control


def test_the_size_of_chunks_is_cost_and_not_result():
    x = text(40)
    for cls in (RetNet, GatedDeltaNet, KDA):
        small, large = (cls(cls.Config(chunk=chunk), DIMS, jax.random.key(0)) for chunk in (4, 64))
        np.testing.assert_allclose(run(small, x)[0], run(large, x)[0], atol=2e-5)


def test_retnet_reads_the_same_at_any_place_of_a_document():
    layer = RetNet(RetNet.Config(), DIMS, jax.random.key(0))
    x, far = text(24), 30_000_000
    here, (state, there) = run(layer, x)[0], (run(layer, x[:, :7], far)[1], run(layer, x, far)[0])
    np.testing.assert_allclose(here, there, atol=2e-6)
    np.testing.assert_allclose(run(layer, x[:, 7:], far + 7, state)[0], here[:, 7:], atol=2e-6)
    one_off = run(layer, x[:, 7:], far + 8, state)[0]
    assert float(jnp.abs(one_off - here[:, 7:]).max()) > 1e-3  # control


def test_retnet_does_not_drift_in_calls_of_one_token():
    """20,000 of them, 16 heads, against the sum over all tokens in float64."""
    time, heads, dim = 20_000, 16, 4
    dims = Dims(width=4, num_heads=heads, num_kv_heads=heads, head_dim=dim)
    layer = RetNet(RetNet.Config(gate=False), dims, jax.random.key(0))
    x_TD = np.random.default_rng(0).normal(size=(time, 4)).astype(np.float32)

    def step(state, token):
        x_D, position = token
        return layer(x_D[None, None], state, segment(position[None, None]))[1], None

    found = jax.jit(lambda x: jax.lax.scan(step, layer.init_state(1), (x, jnp.arange(time)))[0])(x_TD).s_BNKV[0]
    _, k, v = np.moveaxis((x_TD.astype(float) @ np.asarray(layer.qkv.w[...], float)).reshape(time, heads, 3, dim), 2, 0)
    kept = (1 - 2.0 ** (-5 - np.arange(heads))) ** np.arange(time)[::-1, None]
    turned = k[..., : dim // 2] + 1j * k[..., dim // 2 :]
    turned = turned * np.exp(1j * np.arange(time)[:, None, None] * 10_000.0 ** (-2 * np.arange(dim // 2) / dim))
    k = np.concatenate([turned.real, turned.imag], -1) * kept[..., None]
    expected = np.einsum("tnk,tnv->nkv", k, v)
    error = np.abs(found - expected).max((1, 2)) / np.abs(expected).max((1, 2))
    assert error.max() < 5e-5

    turn = lambda s, _: (rope(s, jnp.full((1, 1), -1), 10_000.0), None)  # noqa: E731
    one = jnp.asarray([[[[1.0, 0.0, 0.0, 0.0]]]])
    turned = np.asarray(jax.jit(lambda s: jax.lax.scan(turn, s, length=time)[0])(one))[0, 0, 0]
    assert np.abs(turned - [np.cos(time), 0, -np.sin(time), 0]).max() > 1e-4  # control: a memory that each call turns


@pytest.mark.parametrize("a_log", [41.0, 88.5, 100.0, 1e9])
@pytest.mark.parametrize("cls", [GatedDeltaNet, KDA])
def test_a_rate_that_overflows_forgets_all(cls, a_log):
    layer = cls(cls.Config(chunk=4), DIMS, jax.random.key(0))
    layer.a_log[...] = jnp.full_like(layer.a_log[...], a_log)
    graph, params = nnx.split(layer)

    def loss(params, x):
        y, state = run(nnx.merge(graph, params), x)
        return y.sum() + state.s_BNKV.sum(), y

    x = text(9)
    (_, y), grads = jax.value_and_grad(loss, has_aux=True)(params, x)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    alone = run(layer, jnp.where(jnp.arange(9)[:, None] < 5, 0, x))[0]  # the convolution sees 4 tokens
    np.testing.assert_allclose(y[:, 8], alone[:, 8], atol=1e-6)
    layer.a_log[...] = jnp.full_like(layer.a_log[...], -5.0)
    assert float(jnp.abs(run(layer, x)[0] - y).max()) > 1e-3  # control


@pytest.mark.parametrize(("cls", "least"), [(GatedDeltaNet, 0), (KDA, 1)])
def test_rates_begin_as_in_the_official_code(cls, least):
    """exp(A) ~ U(0, 16) in Gated DeltaNet and U(1, 16) in KDA."""
    dims = dataclasses.replace(DIMS, num_heads=2000, num_kv_heads=2000)
    rate = np.exp(cls(cls.Config(conv=0, gate=False, key_dim=1, value_dim=1), dims, jax.random.key(0)).a_log[...])
    assert least <= rate.min() < least + 0.1
    assert 15.9 < rate.max() <= 16


def test_delta_rule_replaces_the_value_of_a_key():
    """What the family is for: the second value of a key is read back alone; linear attention gives both."""
    values = np.random.default_rng(0).normal(size=(2, BATCH, 1, DIMS.num_heads, DIMS.head_dim))
    key = np.zeros((BATCH, 1, DIMS.num_heads, DIMS.head_dim))
    key[..., 0] = 1

    def last_read(beta):
        k = jnp.asarray(np.concatenate([key, key], 1), jnp.float32)
        v = jnp.asarray(np.concatenate(values, 1), jnp.float32)
        s = jnp.zeros((BATCH, DIMS.num_heads, DIMS.head_dim, DIMS.head_dim))
        return delta_rule(k, k, v, s, None, beta)[0][:, 1]

    np.testing.assert_allclose(last_read(jnp.ones((BATCH, 2, DIMS.num_heads, 1))), values[1][:, 0], atol=1e-6)
    np.testing.assert_allclose(last_read(None), values.sum(0)[:, 0], atol=1e-6)


@pytest.mark.thorough
def test_options_change_what_is_built():
    x = text(9)
    plain = DeltaNet(DeltaNet.Config(), DIMS, jax.random.key(0))
    make = DeltaNet.Config
    for config in (make(negative=True), make(gate=True), make(conv=0), make(conv=1), make(key_dim=6, value_dim=2)):
        layer = DeltaNet(config, DIMS, jax.random.key(0))
        y, state = run(layer, x)
        assert float(jnp.abs(y - run(plain, x)[0]).max()) > 1e-3, config
        carried = run(layer, x[:, 4:], 4, run(layer, x[:, :4])[1])[0]
        np.testing.assert_allclose(carried, y[:, 4:], atol=1e-5)
        assert all(leaf.size for leaf in jax.tree.leaves(state))
    layer = LinearAttention(LinearAttention.Config(normaliser=False), DIMS, jax.random.key(0))
    assert layer.init_state(1).s_BNKV.shape == (1, DIMS.num_heads, DIMS.head_dim, DIMS.head_dim)
    assert np.isfinite(np.asarray(run(layer, x)[0])).all()


def test_settings_that_cannot_be_are_refused_in_one_line():
    with pytest.raises(UserError, match="chunk must be a power of two or 0, not 12"):
        MatrixMemory.Config(chunk=12)
    with pytest.raises(UserError, match="chunk must be a power of two or 0, not -4"):
        GatedDeltaNet.Config(chunk=-4)
    with pytest.raises(UserError, match="cannot be negative"):
        KDA.Config(conv=-1)
    with pytest.raises(UserError, match="rank must be at least 1"):
        GLA.Config(rank=0)
    with pytest.raises(UserError, match="key_dim must be even"):
        RetNet(RetNet.Config(key_dim=3), DIMS, jax.random.key(0))
