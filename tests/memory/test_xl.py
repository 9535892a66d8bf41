"""Transformer-XL's gradient stops at its own boundary, wherever calls are cut."""

import contextlib
import dataclasses
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memtx.contract.case import DIMS
from memtx.contract.test_costs import card
from memtx.core import Dims, segment
from memtx.errors import UserError
from memtx.memory import MEMORIES, xl
from memtx.memory.xl import TransformerXL

SEGMENT = 4


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(1, marks=pytest.mark.thorough),
        pytest.param(2, marks=pytest.mark.thorough),
        3,
        pytest.param(12, marks=pytest.mark.thorough),
    ],
)
def test_gradient_reaches_exactly_the_own_segment(call):
    layer = TransformerXL(TransformerXL.Config(segment=SEGMENT, memory=6), DIMS, jax.random.key(0))
    graph, params = nnx.split(layer)

    @jax.jit
    def outputs(x_TD):
        def step(state, inputs):
            x, start = inputs
            y, state = nnx.merge(graph, params)(x[None], state, segment(start + jnp.arange(call)[None]))
            return state, y[0]

        calls = x_TD.reshape(-1, call, 8), jnp.arange(0, 12, call)
        return jax.lax.scan(step, layer.init_state(1), calls)[1].reshape(12, 8).sum(-1)

    x = jax.random.normal(jax.random.key(1), (12, 8))
    reach = np.abs(jax.jit(jax.jacrev(outputs))(x)).max(-1) > 0
    t, s = np.indices((12, 12))
    np.testing.assert_array_equal(reach, (s <= t) & (s // SEGMENT == t // SEGMENT))
    moved = outputs(x.at[3].add(1.0)) != outputs(x)
    assert moved[4:10].all()  # the values do cross: the memory is read, only its gradient is stopped


def gradients_of_scale(name: str, seeds, *, anew: bool) -> list[np.ndarray]:
    """Of a norm before the layer, for each seed: three segments of 12 tokens, a random weight for every output.

    anew: the memory keeps x before the norm and normalises it again with the current scale, as in the authors' code; then
    its gradient is let through to the scale, and to nothing else.
    """
    width, size = 48, 12
    dims = Dims(width=width, num_heads=3, num_kv_heads=3, head_dim=16)
    cls = MEMORIES[name]
    config = dataclasses.replace(cls.Config(), segment=size, memory=size)
    graph, _ = nnx.split(cls(config, dims, jax.random.key(0)))

    def loss(scale_D, params, h_BTD, weight_BTD):
        layer, unit_BTD = nnx.merge(graph, params), h_BTD * jax.lax.rsqrt((h_BTD**2).mean(-1, keepdims=True))
        x, total = scale_D * unit_BTD, 0.0
        for start in range(0, 3 * size, size):
            own = x[:, start : start + size]
            memory = x[:, max(0, start - size) : start]
            if name == "compressive":  # halves: by the mean of two neighbours
                older = x[:, : max(0, start - size)]
                memory = jnp.concatenate([older.reshape(1, -1, 2, width).mean(2), memory], 1)
            valid = jnp.ones(memory.shape[:2], bool)
            total = (
                total + (layer.read(own, (memory, valid), own, jnp.zeros(1, int)) * weight_BTD[:, start : start + size]).sum()
            )
        return total

    let_through = mock.patch.object(xl.lax, "stop_gradient", lambda x: x) if anew else contextlib.nullcontext()
    gradient, found = jax.jit(jax.grad(loss)), []
    with let_through:
        for seed in seeds:
            rng, (_, params) = np.random.default_rng(seed), nnx.split(cls(config, dims, jax.random.key(seed)))
            h_BTD, weight_BTD = (jnp.asarray(rng.normal(size=(1, 3 * size, width)), jnp.float32) for _ in range(2))
            found.append(np.asarray(gradient(jnp.ones(width), params, h_BTD, weight_BTD)))
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["xl", "compressive"])
def test_the_norms_scale_gets_no_gradient_through_the_memory(name):
    """The cards say by how much it differs from the gradient of the authors' code."""
    pairs = zip(*(gradients_of_scale(name, range(3), anew=anew) for anew in (False, True)), strict=True)
    gaps = [np.abs(ours - theirs).max() / np.abs(theirs).max() for ours, theirs in pairs]
    (stated,) = [line for line in card(name)["deviations"] if "norm's scale" in line]
    percent = re.search(r"(\d+) %", stated)
    assert percent
    assert abs(float(percent[1]) - 100 * np.mean(gaps)) < 1


def test_unknown_position_is_a_clear_error():
    with pytest.raises(UserError, match="relative or rope"):
        TransformerXL(TransformerXL.Config(position="absolute"), DIMS, jax.random.key(0))
