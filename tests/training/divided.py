"""Calls of a mechanism on one device and on eight devices that divide the tokens. For tests/training/test_context.py.

Three calls have padding, an empty row, documents that start in the second and the third call, and gradients through the state.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from memtx.config import Mesh
from memtx.core import Dims, reset, segment
from memtx.memory import MEMORIES
from memtx.ops import delta, ring
from memtx.sharding import Layout

TIME, WIDTH = 24, 16
LENGTH_CB = ((24, 24, 11), (24, 7, 0), (20, 24, 24))
RESET_CB = ((True, True, True), (False, True, False), (False, False, True))
SETTINGS = {"window": {"window": 8}, "full": {"capacity": 40}}  # of eight devices, each has 3 tokens


def largest_error(name: str) -> float:
    """Return the largest difference of a number from that of one device, as a share of the largest number of its array.

    The numbers are those of outputs, states and gradients.
    """
    cls, dims = MEMORIES[name], Dims(WIDTH, 2, 1, WIDTH // 2)
    layer = cls(cls.Config(**SETTINGS.get(name, {"chunk": 4})), dims, jax.random.key(0))
    graph, params = nnx.split(layer)
    args = params, inputs(cls.site), layer.init_state(3)

    def results(layout: Layout, divided: PartitionSpec) -> list[np.ndarray]:
        on_mesh = (NamedSharding(layout.mesh, spec) for spec in (PartitionSpec(), divided, PartitionSpec()))
        loss = jax.value_and_grad(lambda *args: calls(nnx.merge(graph, args[0]), *args[1:]), (0, 1), has_aux=True)
        return jax.tree.leaves(jax.device_get(jax.jit(loss)(*map(jax.device_put, args, on_mesh))))

    alone = results(Layout(devices=jax.devices()[:1]), PartitionSpec())
    eight = results(Layout(Mesh(context=8)), PartitionSpec(None, None, "context"))
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(alone, eight, strict=True))


def inputs(site: str):
    """Return the inputs of three calls at a site."""
    keys = jax.random.split(jax.random.key(1), 3)
    if site == "residual":
        return jax.random.normal(keys[0], (3, 3, TIME, WIDTH))
    return tuple(jax.random.normal(key, (3, 3, TIME, heads, WIDTH // 2)) for key, heads in zip(keys, (2, 1, 1), strict=True))


def calls(layer, x, state):
    """Return a loss of all outputs and of the state, and these outputs and states."""

    def call(carry, inputs):
        (state, at_B), (x, weight, reset_B, length_B) = carry, inputs
        at_B = jnp.where(reset_B, 0, at_B)
        seg = segment(at_B[:, None] + jnp.arange(TIME), length_B, reset_B)
        y, state = layer(x, reset(layer, state, reset_B), seg)
        y_BTD = jnp.where(seg.mask_BT[..., None], y.reshape(3, TIME, WIDTH), 0)
        return (state, at_B + length_B), (y_BTD, (y_BTD * weight).sum())

    weight = jax.random.normal(jax.random.key(2), (3, 3, TIME, WIDTH))
    each_call = x, weight, jnp.asarray(RESET_CB), jnp.asarray(LENGTH_CB)
    (state, _), (outputs, losses) = jax.lax.scan(call, (state, jnp.zeros(3, jnp.int32)), each_call)
    numbers = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32]
    return losses.sum() + sum(jnp.sin(leaf).sum() for leaf in numbers), (outputs, numbers)


def lose_transfers() -> None:
    """Give devices zeros in place of the arrays of other devices."""
    ring.earlier = delta.earlier = lambda tree, by: jax.tree.map(jnp.zeros_like, tree) if by else tree
