"""One block: a memory branch and a feed-forward branch, each after a norm and around a residual.

    h = x + memory(norm x)          at the attention site: Wo memory(q, k, v), at the residual site: memory(norm x)
    y = h + mlp(norm h)

B stream, T time, D model.
"""

from __future__ import annotations

import jax
from flax import nnx
from jax import Array

from memtx.config import Model
from memtx.memory.base import Dims, Segment
from memtx.nn.attention import Projections
from memtx.nn.linear import MLP, Norm, dropout


class Block(nnx.Module):
    """`memory` is any mechanism: `make(dims, key)` builds it, and its `site` says what it is called with."""

    def __init__(self, model: Model, dims: Dims, make, key: Array):
        memory, attention, mlp = jax.random.split(key, 3)
        self.dropout = model.dropout
        self.memory = make(dims, memory)
        self.attention = Projections(attention, dims, bias=model.bias) if self.memory.site == "attention" else None
        self.memory_norm, self.mlp_norm = Norm(model.norm, dims.width), Norm(model.norm, dims.width)
        self.mlp = MLP(mlp, dims.width, model.ff_dim, model.activation, bias=model.bias)

    def init_state(self, batch_size: int):
        return self.memory.init_state(batch_size)

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        keys = (None, None, None) if key is None else jax.random.split(key, 3)
        h = self.memory_norm(x_BTD)
        if self.attention is None:
            h, state = self.memory(h, state, seg, key=keys[0])
        else:
            h, state = self.memory(self.attention.heads(h), state, seg, key=keys[0])
            h = self.attention.merge(h)
        x_BTD = x_BTD + dropout(h, self.dropout, keys[1])
        return x_BTD + dropout(self.mlp(self.mlp_norm(x_BTD)), self.dropout, keys[2]), state
