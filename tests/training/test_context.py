"""A text that devices divide gives the values of a text on one device."""

import json

import jax
import numpy as np
import pytest

from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.runs.configure import configure
from memtx.runs.train import train
from tests.runs import tiny
from tests.training.test_sharding import run

DIVIDED = [name for name, cls in MEMORIES.items() if cls.divides_time]

# Three calls with padding, an empty row, documents that start in the second and third call, and gradients through the state.
CALLS = """
import jax, json, sys
jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
import jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
from memtx.config import Mesh
from memtx.core import Dims, reset, segment
from memtx.memory import MEMORIES
from memtx.ops import context, delta, ring
from memtx.sharding import Layout

name, lost = json.loads(sys.stdin.read())
if lost:  # control: no device gets anything from another
    ring.earlier = delta.earlier = lambda tree, by: jax.tree.map(jnp.zeros_like, tree) if by else tree
T, LENGTH, RESET = 24, [[24, 24, 11], [24, 7, 0], [20, 24, 24]], [[1, 1, 1], [0, 1, 0], [0, 0, 1]]
cls, dims, rng = MEMORIES[name], Dims(16, 2, 1, 8), np.random.default_rng(0)
settings = {"window": {"window": 8}, "full": {"capacity": 40}}
graph, params = nnx.split(cls(cls.Config(**settings.get(name, {"chunk": 4})), dims, jax.random.key(0)))
heads = {"attention": (2, 1, 1), "residual": (2,)}[cls.site]
x = [jnp.asarray(rng.normal(size=(3, 3, T, n, 8)), jnp.float32) for n in heads]
x = x if len(heads) > 1 else x[0].reshape(3, 3, T, 16)
weights = rng.normal(size=(3, T, 16))

def loss(params, x, state):
    layer, total, at_B, ys = nnx.merge(graph, params), 0.0, jnp.zeros(3, jnp.int32), []
    for call in range(3):
        reset_B, length_B = jnp.asarray(RESET[call], bool), jnp.asarray(LENGTH[call])
        at_B = jnp.where(reset_B, 0, at_B)
        seg = segment(at_B[:, None] + jnp.arange(T), length_B, reset_B)
        y, state = layer(jax.tree.map(lambda a: a[call], x), reset(layer, state, reset_B), seg)
        ys.append(jnp.where(seg.mask_BT[..., None], y.reshape(3, T, 16), 0))
        total, at_B = total + (ys[-1] * weights).sum(), at_B + length_B
    numbers = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32]
    return total + sum(jnp.sin(leaf).sum() for leaf in numbers), (ys, numbers)

def results(mesh, divided):
    whole = NamedSharding(mesh, P())
    args = jax.device_put((params, x, nnx.merge(graph, params).init_state(3)), (whole, divided, whole))
    (_, values), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*args)
    return [np.asarray(leaf) for leaf in jax.tree.leaves((values, grads))]

alone = Layout(devices=jax.devices()[:1])
layout = Layout(Mesh(context=8))
pairs = zip(results(alone.mesh, alone.whole), results(layout.mesh, NamedSharding(layout.mesh, P(None, None, "context"))))
print(json.dumps({"error": max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)}))
"""


def error(name: str, *, lost: bool = False) -> float:
    """Return the largest difference between eight devices and one, as a share of the largest number of its array."""
    return run(8, [name, lost], CALLS)[0]["error"]


@pytest.mark.parametrize("name", DIVIDED)
def test_eight_devices_compute_the_outputs_the_states_and_the_gradients_of_one(name):
    assert error(name) < 1e-5
