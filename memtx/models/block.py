"""One block: a memory branch and a feed-forward branch, each after a norm and around a residual.

    h = x + memory(norm x)          at the attention site: Wo memory(q, k, v), at the residual site: memory(norm x)
    y = h + mlp(norm h)             or a residual-site memory in the MLP's place

B stream, T time, D model, J memories side by side.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.config import Model
from memtx.memory.base import Dims, Segment
from memtx.nn.attention import Projections
from memtx.nn.linear import MLP, Linear, Norm, dropout


class Branch(nnx.Module):
    """Memories side by side: their outputs are added, or mixed by weights softmax(x Wg) that begin equal.

    Each of `makes` builds one from (dims, key); its `site` says what it is called with. Those at the attention site share
    one set of projections.
    """

    def __init__(self, model: Model, dims: Dims, makes, gated: bool, key: Array):
        attention, gate, *keys = jax.random.split(key, 2 + len(makes))
        self.memories = nnx.List([make(dims, k) for make, k in zip(makes, keys, strict=True)])
        sites = [memory.site for memory in self.memories]
        self.attention = Projections(attention, dims, bias=model.bias) if "attention" in sites else None
        self.gate = Linear(gate, dims.width, len(makes), scale=0.0) if gated else None

    def init_state(self, batch_size: int):
        return tuple(memory.init_state(batch_size) for memory in self.memories)

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        attention = self.attention
        heads = attention and attention.heads(x_BTD)
        outs, new = [], []
        for i, (memory, memory_state) in enumerate(zip(self.memories, state, strict=True)):
            memory_key = None if key is None else jax.random.fold_in(key, i)
            if attention and memory.site == "attention":
                y, memory_state = memory(heads, memory_state, seg, key=memory_key)
                y = attention.merge(y)
            else:
                y, memory_state = memory(x_BTD, memory_state, seg, key=memory_key)
            outs.append(y)
            new.append(memory_state)
        if self.gate is None:
            return sum(outs[1:], outs[0]), tuple(new)
        weight_BTJ = jax.nn.softmax(self.gate(x_BTD).astype(jnp.float32)).astype(x_BTD.dtype)
        return jnp.einsum("BTJ,BTDJ->BTD", weight_BTJ, jnp.stack(outs, -1)), tuple(new)


class Block(nnx.Module):
    """`memory` builds the memory branch from a key; `mlp` the feed-forward branch, if that is a memory too."""

    def __init__(self, model: Model, dims: Dims, memory, mlp, key: Array):
        for_memory, for_mlp = jax.random.split(key)
        self.dropout = model.dropout
        self.memory = memory(for_memory)
        self.memory_norm, self.mlp_norm = Norm(model.norm, dims.width), Norm(model.norm, dims.width)
        self.mlp = mlp(for_mlp) if mlp else MLP(for_mlp, dims.width, model.ff_dim, model.activation, bias=model.bias)

    def init_state(self, batch_size: int):
        return self.memory.init_state(batch_size), self.mlp.init_state(batch_size)

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        keys = (None,) * 4 if key is None else jax.random.split(key, 4)
        memory_state, mlp_state = state
        h, memory_state = self.memory(self.memory_norm(x_BTD), memory_state, seg, key=keys[0])
        x_BTD = x_BTD + dropout(h, self.dropout, keys[1])
        h, mlp_state = self.mlp(self.mlp_norm(x_BTD), mlp_state, seg, key=keys[2])
        return x_BTD + dropout(h, self.dropout, keys[3]), (memory_state, mlp_state)
