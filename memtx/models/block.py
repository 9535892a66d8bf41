"""One Transformer block: branches in sequence, each with a residual connection and a norm before or after it.

    x <- x + branch(norm x)         post_norm: x <- norm(x + branch(x))
    branch(x) = sum of its memories, at the attention site: Wo memory(q, k, v), at the residual site: memory(x)

The usual block has two branches: attention and the MLP.

B stream, T time, D model, J memories side by side, A of them added to a pretrained backbone.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.config import Model
from memtx.core import Dims, Memory, Segment, wants
from memtx.models.readers import Reader
from memtx.nn.attention import Projections
from memtx.nn.linear import Linear, Norm, dropout
from memtx.nn.mlp import MLP
from memtx.nn.reads import KIND, emit_gate


class Branch(nnx.Module):
    """Memories side by side. Their outputs are added, or mixed by weights softmax(x Wg) that are equal at first.

    Each function in `makes` builds one memory from (dims, key). The `site` of a memory determines its input. The memories at
    the attention site share one set of projections, without keys and values if all of them are readers. With `model.closed`,
    each memory that a plain Transformer would not have gets a learned gain that starts at 0. A plain Transformer has the MLP,
    memories that read an encoder, and the first memory at the attention site that writes.
    """

    def __init__(self, model: Model, dims: Dims, makes, gated: bool, key: Array):
        attention, gate, *keys = jax.random.split(key, 2 + len(makes))
        self.memories = nnx.List([make(dims, k) for make, k in zip(makes, keys, strict=True)])
        sites = [memory.site for memory in self.memories]
        writes = any(map(_writes, self.memories))
        projections = partial(Projections, attention, dims, bias=model.bias, qkv_bias=model.qkv_bias, kv=writes)
        self.attention = projections() if "attention" in sites else None
        self.gate = Linear(gate, dims.width, len(makes), scale=0.0) if gated else None
        self.added = _added(self.memories) if model.closed else ()
        self.gain = nnx.Param(jnp.zeros(len(self.added)), optim="no_decay") if self.added else None

    def init_state(self, batch_size: int):
        """Return the states of the memories."""
        return tuple(memory.init_state(batch_size) for memory in self.memories)

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        """Return y_BTD, without the residual connection, and the new state."""
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
            if self.gain is not None and i in self.added:
                y = y * self.gain[self.added.index(i)].astype(y.dtype)
            outs.append(y)
            new.append(memory_state)
        if self.gate is None:
            return sum(outs[1:], outs[0]), tuple(new)
        weight_BTJ = jax.nn.softmax(self.gate(x_BTD).astype(jnp.float32)).astype(x_BTD.dtype)
        if wants(KIND):
            emit_gate(weight_BTJ, weight_BTJ.shape, "mix")
        return jnp.einsum("BTJ,BTDJ->BTD", weight_BTJ, jnp.stack(outs, -1)), tuple(new)


def _writes(memory) -> bool:
    """Return whether a memory writes keys and values at the attention site."""
    return memory.site == "attention" and not isinstance(memory, Reader)


def _added(memories) -> tuple[int, ...]:
    """Return the indices of the memories that a plain Transformer would not have."""
    attention = [i for i, memory in enumerate(memories) if _writes(memory)]
    plain = [
        i for i, memory in enumerate(memories) if isinstance(memory, MLP) or (isinstance(memory, Memory) and memory.encoded)
    ]
    plain += attention[:1]
    return tuple(i for i in range(len(memories)) if i not in plain)


class Block(nnx.Module):
    """Branches in sequence. Each function in `makes` builds a branch from a key."""

    def __init__(self, model: Model, dims: Dims, makes, key: Array):
        self.dropout, self.post_norm = model.dropout, model.post_norm
        self.branches = nnx.List([make(k) for make, k in zip(makes, jax.random.split(key, len(makes)), strict=True)])
        self.norms = nnx.List([Norm(model.norm, dims.width, model.norm_epsilon) for _ in makes])

    def init_state(self, batch_size: int):
        """Return the states of the branches."""
        return tuple(branch.init_state(batch_size) for branch in self.branches)

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        """Return x_BTD after all branches, and the new state."""
        new = []
        for i, (branch, norm) in enumerate(zip(self.branches, self.norms, strict=True)):
            for_branch, for_dropout = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, i))
            h, branch_state = branch(x_BTD if self.post_norm else norm(x_BTD), state[i], seg, key=for_branch)
            x_BTD = x_BTD + dropout(h, self.dropout, for_dropout)
            x_BTD = norm(x_BTD) if self.post_norm else x_BTD
            new.append(branch_state)
        return x_BTD, tuple(new)
