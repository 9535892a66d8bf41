"""The language model: embedding, body, head. The one place that resets memory, counts positions and fills the Segment.

`Decoder` is the module; `LM` is what users hold: pure functions of (parameters, tokens, state).

B stream, T time, V vocabulary, D model, N heads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.config import Config, Model, complete_model, configure
from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.memory.base import Dims, Segment, State, emit, pytree, reset, segment
from memtx.models.body import body, hand_out, shared
from memtx.nn.linear import Linear, Norm, dense, dropout, normal
from memtx.nn.positions import T5_BUCKETS

Params = Mapping[str, Any]


@pytree
class LMState:
    """What B streams remember: the place each has come to in its document, the body's memories and the head's."""

    position_B: Array
    body: State
    head: State


class Decoder(nnx.Module):
    def __init__(self, model: Model, dims: Dims, key: Array):
        keys = iter(jax.random.split(key, 7))
        self.model = model
        self.embed = normal(next(keys), (model.vocab_size, model.width), 1.0 if not model.tied else model.width**-0.5)
        self.body = body(model, dims, next(keys))
        self.shared = shared(model, dims, next(keys))
        self.norm = None if model.post_norm else Norm(model.norm, model.width, model.norm_epsilon)
        to_logits, place, bias, head = keys
        self.to_logits = None if model.tied else Linear(to_logits, model.width, model.vocab_size)
        learned = model.position == "learned"
        self.place = normal(place, (model.max_position, model.width), 0.02, optim="no_decay") if learned else None
        t5 = model.position == "t5"
        self.relative_bias = normal(bias, (T5_BUCKETS, model.num_heads), 0.02, optim="no_decay") if t5 else None
        self.head = MEMORIES[model.head](model.memory[model.head], dims, head) if model.head else None

    def init_state(self, batch_size: int) -> LMState:
        head = self.head.init_state(batch_size) if self.head else ()
        return LMState(jnp.zeros(batch_size, jnp.int32), self.body.init_state(batch_size), head)

    def __call__(self, token_BT: Array, state: LMState, seg: Segment | None = None, *, key: Array | None = None):
        if seg is None:
            seg = segment(state.position_B[:, None] + jnp.arange(token_BT.shape[1]))
        state = reset(self, state, seg.reset_B)
        handed = dict(seg.shared) | hand_out(self.shared)
        if self.relative_bias is not None:
            handed["relative_bias"] = self.relative_bias[...]
        seg = seg.replace(token_BT=token_BT, shared=handed)
        h = self.embed[...].astype(self.model.dtype)[token_BT] * self.model.embed_scale
        if self.place is not None:
            h = h + self.place[...].astype(h.dtype)[jnp.minimum(seg.position_BT, self.model.max_position - 1)]
        for_embed, for_body, for_head = (None, None, None) if key is None else jax.random.split(key, 3)
        h, body_state = self.body(dropout(h, self.model.dropout, for_embed), state.body, seg, key=for_body)
        h = self.norm(h) if self.norm else h
        emit("hidden", h)
        logits = dense(h, self.embed[...].T) if self.to_logits is None else self.to_logits(h)
        logits, head_state = logits.astype(jnp.float32) * self.model.logit_scale, state.head
        if self.head:
            logits, head_state = self.head((h, logits), head_state, seg, key=for_head)
        last_B = jnp.take_along_axis(seg.position_BT, jnp.maximum(seg.length_B - 1, 0)[:, None], 1)[:, 0]
        position_B = jnp.where(seg.length_B > 0, last_B + 1, state.position_B)
        return logits, LMState(position_B, body_state, head_state)


class LM:
    """A language model with memory, as pure functions.

    params = lm.init(key)                                   nested dict of float32 arrays
    state = lm.init_state(batch)                            empty memory for `batch` streams; needs no parameters
    logits_BTV, state = lm(params, token_BT, state, seg)    seg=None: positions go on, nothing is padded, nothing is reset
    lm.declared("optim", "")                                per parameter, what its module declares to the optimiser

    With `key` the model is stochastic (dropout); without, deterministic. All of it works under jit, grad and eval_shape.
    """

    def __init__(self, model: Model):
        self.model = model
        self.dims = Dims(**{f.name: getattr(model, f.name) for f in dataclasses.fields(Dims)})
        self._make = partial(Decoder, model, self.dims)
        self._graph, self._abstract = nnx.split(nnx.eval_shape(partial(self._make, jax.random.key(0))))
        self._static = nnx.merge(self._graph, self._abstract)

    def init(self, key: Array) -> Params:
        return jax.jit(lambda key: nnx.to_pure_dict(nnx.state(self._make(key))))(key)

    def init_state(self, batch_size: int) -> LMState:
        return self._static.init_state(batch_size)

    def __call__(
        self, params: Params, token_BT: Array, state: LMState, seg: Segment | None = None, *, key: Array | None = None
    ) -> tuple[Array, LMState]:
        abstract = jax.tree.map(lambda v: v, self._abstract)
        nnx.replace_by_pure_dict(abstract, dict(params))
        return nnx.merge(self._graph, abstract)(token_BT, state, seg, key=key)

    def declared(self, name: str, default: Any) -> Params:
        """The metadata that modules gave their parameters, as a tree like the parameters."""
        variables = nnx.to_pure_dict(self._abstract, extract_fn=lambda v: v)
        is_variable = lambda v: isinstance(v, nnx.Variable)  # noqa: E731
        return jax.tree.map(lambda v: v.get_metadata().get(name, default), variables, is_leaf=is_variable)

    @property
    def abstract_params(self) -> Params:
        """Shapes and dtypes of the parameters."""
        return nnx.to_pure_dict(self._abstract)

    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params))


def build(config, *, vocab_size: int = 0) -> LM:
    """The language model of a config: a whole one (ConfigDict, mapping or Config) or its `model` group.

    vocab_size: the tokenizer's, where the config leaves `model.vocab_size` at 0.
    """
    if isinstance(config, Model):
        model = complete_model(config)
    else:
        whole = isinstance(config, Config) or "model" in config
        model = configure(config if whole else {"model": config}).model
    size = model.vocab_size or vocab_size
    if not size:
        raise UserError("model.vocab_size is not set: give it in the config, or a tokenizer's vocab_size to build")
    if size < vocab_size:
        raise UserError(f"model.vocab_size={size} is too small: the tokenizer has {vocab_size} tokens")
    return LM(dataclasses.replace(model, vocab_size=size))
