"""Bodies made of layers: a Stack repeats a pattern of layers under a scan, and a Sequence runs stacks in order.

Both are also layers. The parameters and states of a Stack have a leading axis G (groups).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.core import Segment, collect, emit, emit_all, rematerialised, scan, wanted
from memtx.models.readers import KIND, last_group, publish
from memtx.nn.reads import in_layer


class Stack(nnx.Module):
    """`groups` repetitions of a pattern. Each function in `makes` builds one layer of the pattern from a key.

    scan=True keeps compile time independent of depth. scan=False unrolls the loop, which runs faster on a CPU.
    remat=True recomputes each layer in the backward pass, except a mechanism's reads from a bank (named "read").
    A layer may read memories written earlier in its group (see readers.py). `handed` lists those that later stacks read.
    first: the number of layers before this stack, for attribution.
    """

    def __init__(self, makes, groups: int, key: Array, *, scan: bool = True, remat: bool = False, handed=(), first=0):
        self.groups, self.unroll, self.remat, self.handed = groups, 1 if scan else groups, remat, tuple(handed)
        self.first = first
        keys = jax.random.split(key, len(makes))
        self.layers = nnx.List([stacked(make, k, groups) for make, k in zip(makes, keys, strict=True)])

    def init_state(self, batch_size: int):
        """Return the states of the layers, with a leading axis G."""
        one = tuple(layer.init_state(batch_size) for layer in self.layers)
        return jax.tree.map(lambda s: jnp.broadcast_to(s, (self.groups, *s.shape)), one)

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        """Return x_BTD after all groups, and the new state."""
        graphs, params = zip(*(nnx.split(layer) for layer in self.layers), strict=True)

        def group(x, slices):
            params, state, g = slices
            layer_seg, new = seg, []
            for i in range(len(graphs)):
                layer = partial(_call, _Structure(graphs[i]), wanted(), layer_seg)
                layer = rematerialised(layer) if self.remat else layer
                layer_key = None if key is None else jax.random.fold_in(jax.random.fold_in(key, i), g)
                (x, layer_state), aux = layer(params[i], x, state[i], layer_key)
                layer_seg, aux = publish(layer_seg, aux)
                emit_all(in_layer(aux, self.first + g * len(graphs) + i))
                new.append(layer_state)
            for name in self.handed:
                emit(name, layer_seg.shared[name])
            return x, tuple(new)

        return scan(group, x_BTD, (params, state, jnp.arange(self.groups)), unroll=self.unroll)


class Sequence(nnx.Module):
    """Stacks in sequence. Each may read memories that earlier stacks wrote."""

    def __init__(self, bodies):
        self.bodies = nnx.List(bodies)

    def init_state(self, batch_size: int):
        """Return the states of the stacks."""
        return tuple(body.init_state(batch_size) for body in self.bodies)

    def local_position(self, position_BT: Array) -> Array:
        """Return the positions unchanged (see `Memory.local_position`)."""
        return position_BT

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        """Return x_BTD after all stacks, and the new state."""
        new = []
        for i, (body, body_state) in enumerate(zip(self.bodies, state, strict=True)):
            body_key = None if key is None else jax.random.fold_in(key, i)
            (x_BTD, body_state), aux = collect(body, also=(KIND,))(x_BTD, body_state, seg, key=body_key)
            seg, aux = publish(seg, aux, last_group)
            emit_all(aux)
            new.append(body_state)
        return x_BTD, tuple(new)


def stacked(make, key: Array, n: int):
    """Build a module whose parameters have a leading axis n. Each slice is drawn with a separate key."""
    return nnx.merge(*jax.vmap(lambda key: nnx.split(make(key)))(jax.random.split(key, n)))


@dataclass(frozen=True)
class _Structure:
    """A layer without its parameters. Equality compares attributes. The hash does not, because lists have no hash."""

    graph: nnx.GraphDef

    def __hash__(self):
        return hash(self.graph.num_leaves)


@partial(jax.jit, static_argnums=(0, 1), inline=True)
def _call(structure: _Structure, kinds: tuple[str, ...], seg: Segment, params, x: Array, state, key: Array | None):
    """Call a layer, and collect what it emits. In a program without a scan, layers of one structure are traced only once."""
    return collect(nnx.merge(structure.graph, params), also=kinds)(x, state, seg, key=key)
