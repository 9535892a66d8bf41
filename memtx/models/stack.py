"""Bodies made of layers: a Stack repeats a pattern of layers under scan; a Sequence runs bodies one after the other.

Both are layers themselves. Parameters and states of a Stack have a leading axis G (groups).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.core import Segment, collect, emit, emit_all, rematerialised, scan
from memtx.models.readers import KIND, hand_on, last_group


class Stack(nnx.Module):
    """`pattern` x `groups`: each of `makes` builds one layer of the pattern from a key.

    scan=True keeps compile time independent of depth; scan=False unrolls the loop, which runs faster on a CPU.
    remat=True recomputes each layer in the backward pass; what a mechanism has read from a bank is saved (it is named "read").
    Layers read memories (see readers.py) of earlier ones in their group; `handed` names those that later stacks read.
    """

    def __init__(self, makes, groups: int, key: Array, *, scan: bool = True, remat: bool = False, handed=()):
        self.groups, self.unroll, self.remat, self.handed = groups, 1 if scan else groups, remat, tuple(handed)
        keys = jax.random.split(key, len(makes))
        self.layers = nnx.List([stacked(make, k, groups) for make, k in zip(makes, keys, strict=True)])

    def init_state(self, batch_size: int):
        one = tuple(layer.init_state(batch_size) for layer in self.layers)
        return jax.tree.map(lambda s: jnp.broadcast_to(s, (self.groups, *s.shape)), one)

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        graphs, params = zip(*(nnx.split(layer) for layer in self.layers), strict=True)

        def call(i, seg, params, x, state, key):
            return nnx.merge(graphs[i], params)(x, state, seg, key=key)

        def group(x, slices):
            params, state, g = slices
            told, new = seg, []
            for i in range(len(graphs)):
                layer = partial(call, i, told)
                layer = collect(rematerialised(layer) if self.remat else layer)
                layer_key = None if key is None else jax.random.fold_in(jax.random.fold_in(key, i), g)
                (x, layer_state), aux = layer(params[i], x, state[i], layer_key)
                told, aux = hand_on(told, aux)
                emit_all(aux)
                new.append(layer_state)
            for name in self.handed:
                emit(name, told.shared[name])
            return x, tuple(new)

        return scan(group, x_BTD, (params, state, jnp.arange(self.groups)), unroll=self.unroll)


class Sequence(nnx.Module):
    """Stacks, of which each may read memories of those before."""

    def __init__(self, bodies):
        self.bodies = nnx.List(bodies)

    def init_state(self, batch_size: int):
        return tuple(body.init_state(batch_size) for body in self.bodies)

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        new = []
        for i, (body, body_state) in enumerate(zip(self.bodies, state, strict=True)):
            body_key = None if key is None else jax.random.fold_in(key, i)
            (x_BTD, body_state), aux = collect(body, also=(KIND,))(x_BTD, body_state, seg, key=body_key)
            seg, aux = hand_on(seg, aux, last_group)
            emit_all(aux)
            new.append(body_state)
        return x_BTD, tuple(new)


def stacked(make, key: Array, n: int):
    """A module whose every parameter has a leading axis n, each slice drawn from its own key."""
    graph, abstract = nnx.split(nnx.eval_shape(partial(make, key)))
    params = jax.vmap(lambda k: nnx.to_pure_dict(nnx.state(make(k))))(jax.random.split(key, n))
    nnx.replace_by_pure_dict(abstract, params)
    return nnx.merge(graph, abstract)
