"""Transformer-XL's gradient stops at its own boundary, wherever calls are cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memtx.errors import UserError
from memtx.memory.base import segment
from memtx.memory.xl import TransformerXL
from tests.contract.case import DIMS

SEGMENT = 4


@pytest.mark.parametrize("call", [1, 2, 3, 12])
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


def test_unknown_position_is_a_clear_error():
    with pytest.raises(UserError, match="relative or rope"):
        TransformerXL(TransformerXL.Config(position="absolute"), DIMS, jax.random.key(0))
