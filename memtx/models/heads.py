"""What a model gives in place of the next token's logits, as `model.output` names it: heads over the last hidden states.

    masked_lm   logits_BTV   of the token that stands at each place, tied to the embedding (BERT)
    pooled      y_BD         one vector for the tokens of a call
    classes     logits_BC    of the class of the tokens of a call, from their vector
    span        logits_BT2   of the answer's first and last token

One vector, as `model.pool` says: "cls", tanh of a linear map of the first token's (BERT), or "mean", of the real tokens'.

B stream, T time, D model, V vocabulary, C classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.config import Model
from memtx.memory.base import Segment
from memtx.nn.linear import Linear, Norm, dense, dropout
from memtx.nn.mlp import ACTIVATIONS


class MaskedLM(nnx.Module):
    def __init__(self, model: Model, key: Array):
        self.activation = model.activation
        self.transform = Linear(key, model.width, model.width, bias=True)
        self.norm = Norm(model.norm, model.width, model.norm_epsilon)
        self.bias = nnx.Param(jnp.zeros(model.vocab_size), optim="no_decay")

    def __call__(self, h_BTD: Array, embed_VD: Array, seg: Segment, *, key: Array | None = None) -> Array:
        h_BTD = self.norm(ACTIVATIONS[self.activation](self.transform(h_BTD)))
        return dense(h_BTD, embed_VD.T).astype(jnp.float32) + self.bias[...]


class Pooled(nnx.Module):
    def __init__(self, model: Model, key: Array):
        self.dense = Linear(key, model.width, model.width, bias=True) if model.pool == "cls" else None

    def __call__(self, h_BTD: Array, embed_VD: Array, seg: Segment, *, key: Array | None = None) -> Array:
        if self.dense is not None:
            return jnp.tanh(self.dense(h_BTD[:, 0])).astype(jnp.float32)
        total_BD = jnp.where(seg.mask_BT[..., None], h_BTD.astype(jnp.float32), 0).sum(1)
        return total_BD / jnp.maximum(seg.length_B, 1)[:, None]


class Classes(nnx.Module):
    def __init__(self, model: Model, key: Array):
        pool, to_logits = jax.random.split(key)
        self.dropout = model.dropout
        self.pool = Pooled(model, pool)
        self.classes = Linear(to_logits, model.width, model.classes, bias=True, scale=0.02)

    def __call__(self, h_BTD: Array, embed_VD: Array, seg: Segment, *, key: Array | None = None) -> Array:
        return self.classes(dropout(self.pool(h_BTD, embed_VD, seg), self.dropout, key))


class Span(nnx.Module):
    def __init__(self, model: Model, key: Array):
        self.span = Linear(key, model.width, 2, bias=True, scale=0.02)

    def __call__(self, h_BTD: Array, embed_VD: Array, seg: Segment, *, key: Array | None = None) -> Array:
        return self.span(h_BTD).astype(jnp.float32)


OUTPUTS = {"masked_lm": MaskedLM, "pooled": Pooled, "classes": Classes, "span": Span}
