"""Outputs: modules over the last hidden states that replace the next token's logits. `model.output` names one.

    masked_lm   logits_BTV   of the token at each position, tied to the embedding (BERT)
    pooled      y_BE         one vector for the text, after the linear maps of `model.projections`
    classes     logits_BC    of the class of the text, from that vector
    span        logits_BT2   of the answer's first and last token

`model.pool` chooses the vector:

    cls                        tanh of a linear map of the vector of the first token (BERT)
    document                   the mean of all tokens of the document so far, over all calls, so it has a state
    first, last                the vector of the first or the last real token of a call
    max, mean, mean_sqrt       over a call's n real tokens; mean_sqrt is their sum / sqrt(n)
    weighted                   their mean, the i-th with weight i
    first+mean, ...            several of the last six, side by side

B stream, T time, D model, E features out, V vocabulary, C classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.config import Model
from memtx.core import Segment, State, pytree
from memtx.nn.linear import Linear, Norm, dense, dropout
from memtx.nn.mlp import ACTIVATIONS


class Output(nnx.Module):
    """The base class: (h_BTD, the embedding, its state, seg) -> (result, state)."""

    def init_state(self, batch_size: int) -> State:
        """Return the empty state of `batch_size` streams."""
        return ()


class MaskedLM(Output):
    """Logits of the token at each position, [B, T, V]."""

    def __init__(self, model: Model, key: Array):
        self.activation = model.activation
        self.transform = Linear(key, model.width, model.width, bias=True)
        self.norm = Norm(model.norm, model.width, model.norm_epsilon)
        self.bias = nnx.Param(jnp.zeros(model.vocab_size), optim="no_decay")

    def __call__(self, h_BTD: Array, embed_VD: Array, state: State, seg: Segment, *, key: Array | None = None):
        """Return the logits [B, T, V] and the state."""
        h_BTD = self.norm(ACTIVATIONS[self.activation](self.transform(h_BTD)))
        return dense(h_BTD, embed_VD.T).astype(jnp.float32) + self.bias[...], state


@pytree
class Read:
    """The sum and the number of the tokens of a document so far."""

    total_BD: Array
    tokens_B: Array


def _at(h_BTD: Array, index_B: Array) -> Array:
    return jnp.take_along_axis(h_BTD, index_B[:, None, None], 1)[:, 0]


def _sum(h_BTD: Array, seg: Segment) -> Array:
    return jnp.where(seg.mask_BT[..., None], h_BTD, 0).sum(1)


def _tokens(seg: Segment) -> Array:
    """Return the number of tokens, at least 1, so that a row without tokens gives 0."""
    return jnp.maximum(seg.length_B, 1)[:, None].astype(jnp.float32)


def _max(h_BTD: Array, seg: Segment) -> Array:
    most_BD = jnp.where(seg.mask_BT[..., None], h_BTD, -jnp.inf).max(1)
    return jnp.where(seg.length_B[:, None] > 0, most_BD, 0)


def _weighted(h_BTD: Array, seg: Segment) -> Array:
    weight_T = jnp.arange(1, h_BTD.shape[1] + 1, dtype=jnp.float32)
    tokens_B1 = _tokens(seg)
    return _sum(h_BTD * weight_T[:, None], seg) / (tokens_B1 * (tokens_B1 + 1) / 2)


POOLS = {  # (h_BTD in float32, seg) -> y_BD
    "first": lambda h_BTD, seg: h_BTD[:, 0],
    "max": _max,
    "mean": lambda h_BTD, seg: _sum(h_BTD, seg) / _tokens(seg),
    "mean_sqrt": lambda h_BTD, seg: _sum(h_BTD, seg) / jnp.sqrt(_tokens(seg)),
    "weighted": _weighted,
    "last": lambda h_BTD, seg: _at(h_BTD, jnp.maximum(seg.length_B - 1, 0)),
}


class Pool(Output):
    """One vector per call or document: the pooled hidden states. Classes and sentence embeddings use it."""

    def __init__(self, model: Model, key: Array):
        self.width, self.document = model.width, model.pool == "document"
        self.pools = tuple(name for name in model.pool.split("+") if name in POOLS)
        self.features = model.width * max(len(self.pools), 1)
        self.dense = Linear(key, model.width, model.width, bias=True) if model.pool == "cls" else None

    def init_state(self, batch_size: int) -> State:
        """Return a sum and a count of zero if the document is pooled, or () if a call is pooled."""
        return Read(jnp.zeros((batch_size, self.width)), jnp.zeros(batch_size, jnp.int32)) if self.document else ()

    def __call__(self, h_BTD: Array, embed_VD: Array, state: State, seg: Segment, *, key: Array | None = None):
        """Return the vectors [B, D] and the state."""
        if self.dense is not None:
            return jnp.tanh(self.dense(h_BTD[:, 0])).astype(jnp.float32), state
        h_BTD = h_BTD.astype(jnp.float32)
        if self.document:
            state = jax.tree.map(jnp.add, state, Read(_sum(h_BTD, seg), seg.length_B))
            return state.total_BD / jnp.maximum(state.tokens_B, 1)[:, None], state
        return jnp.concatenate([POOLS[name](h_BTD, seg) for name in self.pools], -1), state


PROJECTIONS = {
    "tanh": jnp.tanh,
    "identity": lambda y: y,
    "relu": jax.nn.relu,
    "gelu_exact": ACTIVATIONS["gelu_exact"],
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
}


class Pooled(Pool):
    """The pooled vector after the projections of a sentence encoder, [B, features]."""

    def __init__(self, model: Model, key: Array):
        super().__init__(model, key)
        self.activations = tuple(activation for _, activation, _ in model.projections)
        sizes = [self.features, *(features for features, *_ in model.projections)]
        keys = jax.random.split(jax.random.fold_in(key, 1), max(len(model.projections), 1))
        self.projections = nnx.List(
            Linear(key, d_in, d_out, bias=bias)
            for key, d_in, (d_out, _, bias) in zip(keys, sizes, model.projections, strict=False)
        )

    def __call__(self, h_BTD: Array, embed_VD: Array, state: State, seg: Segment, *, key: Array | None = None):
        y_BE, state = super().__call__(h_BTD, embed_VD, state, seg)
        for linear, activation in zip(self.projections, self.activations, strict=True):
            y_BE = PROJECTIONS[activation](linear(y_BE))
        return y_BE, state


class Classes(Output):
    """Logits of the class of the text, [B, C]."""

    def __init__(self, model: Model, key: Array):
        pool, to_logits = jax.random.split(key)
        self.dropout = model.dropout
        self.pool = Pool(model, pool)
        self.classes = Linear(to_logits, self.pool.features, model.classes, bias=True, scale=0.02)

    def init_state(self, batch_size: int) -> State:
        """Return the state of the pooling."""
        return self.pool.init_state(batch_size)

    def __call__(self, h_BTD: Array, embed_VD: Array, state: State, seg: Segment, *, key: Array | None = None):
        """Return the logits [B, C] and the state."""
        y_BD, state = self.pool(h_BTD, embed_VD, state, seg)
        return self.classes(dropout(y_BD, self.dropout, key)), state


class Span(Output):
    """Logits of the answer's first and last token, [B, T, 2]."""

    def __init__(self, model: Model, key: Array):
        self.span = Linear(key, model.width, 2, bias=True, scale=0.02)

    def __call__(self, h_BTD: Array, embed_VD: Array, state: State, seg: Segment, *, key: Array | None = None):
        """Return the logits [B, T, 2] and the state."""
        return self.span(h_BTD).astype(jnp.float32), state


OUTPUTS = {"masked_lm": MaskedLM, "pooled": Pooled, "classes": Classes, "span": Span}
