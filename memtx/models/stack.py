"""Bodies made of layers: a Stack repeats a pattern of layers under scan; a Sequence runs bodies one after the other.

Both are layers themselves. Parameters and states of a Stack have a leading axis G (groups).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.memory.base import Segment, collect, emit_all, scan


class Stack(nnx.Module):
    """`pattern` x `groups`: each of `makes` builds one layer of the pattern from a key.

    scan=True keeps compile time independent of depth; scan=False unrolls the loop, which runs faster on a CPU.
    remat=True recomputes each layer in the backward pass; what a mechanism has read from a bank is saved (it is named "read").
    """

    def __init__(self, makes, groups: int, key: Array, *, scan: bool = True, remat: bool = False):
        self.groups, self.unroll, self.remat = groups, 1 if scan else groups, remat
        keys = jax.random.split(key, len(makes))
        self.layers = nnx.List([stacked(make, k, groups) for make, k in zip(makes, keys, strict=True)])

    def init_state(self, batch_size: int):
        one = tuple(layer.init_state(batch_size) for layer in self.layers)
        return jax.tree.map(lambda s: jnp.broadcast_to(s, (self.groups, *s.shape)), one)

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        graphs, params = zip(*(nnx.split(layer) for layer in self.layers), strict=True)

        def call(i, params, x, state, key):
            return nnx.merge(graphs[i], params)(x, state, seg, key=key)

        def group(x, slices):
            params, state, g = slices
            new = []
            for i in range(len(graphs)):
                layer = collect(partial(call, i))
                if self.remat:
                    layer = jax.checkpoint(layer, policy=jax.checkpoint_policies.save_only_these_names("read"))
                layer_key = None if key is None else jax.random.fold_in(jax.random.fold_in(key, i), g)
                (x, layer_state), aux = layer(params[i], x, state[i], layer_key)
                emit_all(aux)
                new.append(layer_state)
            return x, tuple(new)

        return scan(group, x_BTD, (params, state, jnp.arange(self.groups)), unroll=self.unroll)


class Sequence(nnx.Module):
    def __init__(self, bodies):
        self.bodies = nnx.List(bodies)

    def init_state(self, batch_size: int):
        return tuple(body.init_state(batch_size) for body in self.bodies)

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        new = []
        for i, (body, body_state) in enumerate(zip(self.bodies, state, strict=True)):
            x_BTD, body_state = body(x_BTD, body_state, seg, key=None if key is None else jax.random.fold_in(key, i))
            new.append(body_state)
        return x_BTD, tuple(new)


def stacked(make, key: Array, n: int):
    """A module whose every parameter has a leading axis n, each slice drawn from its own key."""
    graph, abstract = nnx.split(nnx.eval_shape(partial(make, key)))
    params = jax.vmap(lambda k: nnx.to_pure_dict(nnx.state(make(k))))(jax.random.split(key, n))
    nnx.replace_by_pure_dict(abstract, params)
    return nnx.merge(graph, abstract)
