"""What a model gives in place of the next token's logits, as `model.output` names it: heads over the last hidden states.

    masked_lm   logits_BTV   of the token that stands at each place, tied to the embedding (BERT)
    pooled      y_BD         one vector for what was read
    classes     logits_BC    of the class of what was read, from that vector
    span        logits_BT2   of the answer's first and last token

One vector, as `model.pool` says: "cls", tanh of a linear map of the first token's (BERT); "mean", of a call's real tokens; or
"document", the mean of all tokens of the document so far, in whatever calls they came: only this has a state.

B stream, T time, D model, V vocabulary, C classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.config import Model
from memtx.memory.base import Segment, State, pytree
from memtx.nn.linear import Linear, Norm, dense, dropout
from memtx.nn.mlp import ACTIVATIONS


class Output(nnx.Module):
    """A head: (h_BTD, the embedding, its state, seg) -> (what it gives, state)."""

    def init_state(self, batch_size: int) -> State:
        return ()


class MaskedLM(Output):
    def __init__(self, model: Model, key: Array):
        self.activation = model.activation
        self.transform = Linear(key, model.width, model.width, bias=True)
        self.norm = Norm(model.norm, model.width, model.norm_epsilon)
        self.bias = nnx.Param(jnp.zeros(model.vocab_size), optim="no_decay")

    def __call__(self, h_BTD: Array, embed_VD: Array, state: State, seg: Segment, *, key: Array | None = None):
        h_BTD = self.norm(ACTIVATIONS[self.activation](self.transform(h_BTD)))
        return dense(h_BTD, embed_VD.T).astype(jnp.float32) + self.bias[...], state


@pytree
class Read:
    """Of a document, so far."""

    total_BD: Array
    tokens_B: Array


class Pooled(Output):
    def __init__(self, model: Model, key: Array):
        self.width, self.document = model.width, model.pool == "document"
        self.dense = Linear(key, model.width, model.width, bias=True) if model.pool == "cls" else None

    def init_state(self, batch_size: int) -> State:
        return Read(jnp.zeros((batch_size, self.width)), jnp.zeros(batch_size, jnp.int32)) if self.document else ()

    def __call__(self, h_BTD: Array, embed_VD: Array, state: State, seg: Segment, *, key: Array | None = None):
        if self.dense is not None:
            return jnp.tanh(self.dense(h_BTD[:, 0])).astype(jnp.float32), state
        read = Read(jnp.where(seg.mask_BT[..., None], h_BTD.astype(jnp.float32), 0).sum(1), seg.length_B)
        if self.document:
            state = read = jax.tree.map(jnp.add, state, read)
        return read.total_BD / jnp.maximum(read.tokens_B, 1)[:, None], state


class Classes(Output):
    def __init__(self, model: Model, key: Array):
        pool, to_logits = jax.random.split(key)
        self.dropout = model.dropout
        self.pool = Pooled(model, pool)
        self.classes = Linear(to_logits, model.width, model.classes, bias=True, scale=0.02)

    def init_state(self, batch_size: int) -> State:
        return self.pool.init_state(batch_size)

    def __call__(self, h_BTD: Array, embed_VD: Array, state: State, seg: Segment, *, key: Array | None = None):
        y_BD, state = self.pool(h_BTD, embed_VD, state, seg)
        return self.classes(dropout(y_BD, self.dropout, key)), state


class Span(Output):
    def __init__(self, model: Model, key: Array):
        self.span = Linear(key, model.width, 2, bias=True, scale=0.02)

    def __call__(self, h_BTD: Array, embed_VD: Array, state: State, seg: Segment, *, key: Array | None = None):
        return self.span(h_BTD).astype(jnp.float32), state


OUTPUTS = {"masked_lm": MaskedLM, "pooled": Pooled, "classes": Classes, "span": Span}
