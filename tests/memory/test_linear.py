"""The matrix memories: long text, 16-bit inputs, options, and settings that cannot be."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.errors import UserError
from memtx.memory.base import segment
from memtx.memory.delta import KDA, DeltaNet, GatedDeltaNet
from memtx.memory.linear import GLA, LinearAttention, MatrixMemory, RetNet
from memtx.ops.delta import delta_rule
from tests.contract.case import BATCH, DIMS

ALL = [LinearAttention, RetNet, GLA, DeltaNet, GatedDeltaNet, KDA]


def run(layer, x_BTD, start: int = 0, state=None):
    state = layer.init_state(BATCH) if state is None else state
    position = jnp.broadcast_to(start + jnp.arange(x_BTD.shape[1]), x_BTD.shape[:2])
    return jax.jit(lambda x, s, seg: layer(x, s, seg))(x_BTD, state, segment(position))


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
    x = text(24)
    here, there = run(layer, x), run(layer, x, start=30_000_000)
    np.testing.assert_array_equal(here[0], there[0])
    _, state = run(layer, x[:, :7])
    moved = dataclasses.replace(state, s_BNKV=layer.turn(state.s_BNKV, jnp.ones(BATCH, jnp.int32)))
    y, expected = run(layer, x[:, 7:], 7, state)[0], here[0][:, 7:]
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert float(jnp.abs(run(layer, x[:, 7:], 7, moved)[0] - expected).max()) > 1e-3  # control: one place off


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
    with pytest.raises(UserError, match="chunk must be a power of two, not 12"):
        MatrixMemory.Config(chunk=12)
    with pytest.raises(UserError, match="chunk must be at least 1"):
        GatedDeltaNet.Config(chunk=0)
    with pytest.raises(UserError, match="cannot be negative"):
        KDA.Config(conv=-1)
    with pytest.raises(UserError, match="rank must be at least 1"):
        GLA.Config(rank=0)
    with pytest.raises(UserError, match="key_dim must be even"):
        RetNet(RetNet.Config(key_dim=3), DIMS, jax.random.key(0))
