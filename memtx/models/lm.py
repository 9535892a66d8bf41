"""The language model: embedding, body, head. Only this file resets states, counts positions and fills the Segment.

`Decoder` is the module. `LM` is the interface for users: pure functions of (parameters, tokens, state). With bidirectional
layers and a different `model.output` it is an encoder. With `model.encoder` it reads a source by cross-attention.

B stream, T time, S source time, V vocabulary, D model, N heads, L learned positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.core import Tracer

from memtx.config import Model
from memtx.core import Body, Dims, Segment, State, emit, pytree, reset, segment
from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.models.body import build_body, build_shared, collect_shared
from memtx.models.encoder import Encoder
from memtx.models.outputs import OUTPUTS
from memtx.models.patterns import names
from memtx.models.settings import complete_model
from memtx.nn.linear import Linear, Norm, dense, dropout, normal
from memtx.nn.positions import T5_BUCKETS
from memtx.ops.grid import skip_if_empty
from memtx.ops.rows import lookup

Params = Mapping[str, Any]


@pytree
class LMState:
    """The state of B streams: the next position in each document, and the states of the body, the head and the output."""

    position_B: Array
    body: State
    head: State
    output: State


class Decoder(nnx.Module):
    """The module: embedding, body, norm and logits, with a head and an encoder if the config names them."""

    def __init__(self, model: Model, dims: Dims, key: Array):
        keys = iter(jax.random.split(key, 10))
        self.model = model
        self.embed = normal(
            next(keys), (model.vocab_size, model.width), 1.0 if not model.tied else model.width**-0.5, axes=("model", None)
        )
        self.body = build_body(model, dims, next(keys))
        self.shared = build_shared(model, dims, next(keys))
        self.norm = None if model.post_norm else Norm(model.norm, model.width, model.norm_epsilon)
        to_logits, place, bias, head, types, output, encoder = keys
        self.output = OUTPUTS[model.output](model, output) if model.output else None
        self.to_logits = None if model.tied or model.output else Linear(to_logits, model.width, model.vocab_size)
        learned = model.position == "learned"
        self.place = normal(place, (model.max_position, model.width), 0.02, optim="no_decay") if learned else None
        self.types = normal(types, (model.token_types, model.width), 0.02, optim="no_decay") if model.token_types else None
        self.embed_norm = Norm(model.norm, model.width, model.norm_epsilon) if model.embed_norm else None
        t5 = model.position == "t5"
        self.relative_bias = normal(bias, (T5_BUCKETS, model.num_heads), 0.02, optim="no_decay") if t5 else None
        self.encoder = Encoder(model, dims, encoder) if model.encoder else None
        self.head = MEMORIES[model.head](model.memory[model.head], dims, head) if model.head else None

    def init_state(self, batch_size: int) -> LMState:
        """Return the empty state of `batch_size` streams."""
        head = self.head.init_state(batch_size) if self.head else ()
        output = self.output.init_state(batch_size) if self.output else ()
        return LMState(jnp.zeros(batch_size, jnp.int32), self.body.init_state(batch_size), head, output)

    def __call__(self, token_BT: Array, state: LMState, seg: Segment | None = None, *, key: Array | None = None):
        """Return the logits (or the result of `model.output`) and the new state."""
        h, state, seg = self.hidden(token_BT, state, seg, key=key)
        for_head = None if key is None else jax.random.split(key, 4)[2]
        logits, output_state = self.logits(h, state.output, seg, for_head)
        head_state = state.head
        if self.head:
            logits, head_state = self.head((h, logits), head_state, seg, key=for_head)
        return logits, dataclasses.replace(state, head=head_state, output=output_state)

    def hidden(self, token_BT: Array, state: LMState, seg: Segment | None = None, *, key: Array | None = None):
        """Return h_BTD, from which logits are computed, the state after it, and the Segment that the layers saw."""
        if seg is None:
            seg = segment(state.position_B[:, None] + jnp.arange(token_BT.shape[1]))
        state = reset(self, state, seg.reset_B)
        for_embed, for_body, _, for_encoder = (None,) * 4 if key is None else jax.random.split(key, 4)
        handed = dict(seg.shared) | collect_shared(self.shared)
        if self.encoder is not None and "source/token" in handed:
            handed |= self.encode(self.encoder, handed, for_encoder)
        if self.relative_bias is not None:
            handed["relative_bias"] = self.relative_bias[...]
        seg = seg.replace(token_BT=token_BT, shared=handed)
        h, body_state = self.body(self.embedded(token_BT, seg, for_embed, self.body), state.body, seg, key=for_body)
        h = self.norm(h) if self.norm else h
        emit("hidden", h)
        last_B = jnp.take_along_axis(seg.position_BT, jnp.maximum(seg.length_B - 1, 0)[:, None], 1)[:, 0]
        position_B = jnp.where(seg.length_B > 0, last_B + 1, state.position_B)
        return h, dataclasses.replace(state, position_B=position_B, body=body_state), seg

    def embedded(self, token_BT: Array, seg: Segment, key: Array | None, body: Body) -> Array:
        """Return the embedded tokens h_BTD, with learned position and token-type embeddings if the model has them."""
        h = lookup(self.embed[...], token_BT).astype(self.model.dtype) * self.model.embed_scale
        if self.place is not None:
            h = h + self.placed(self.place[...], seg, body).astype(h.dtype)
        if self.types is not None:
            h = h + self.types[...].astype(h.dtype)[seg.shared.get("token_type", jnp.zeros_like(token_BT))]
        h = self.embed_norm(h) if self.embed_norm else h
        return dropout(h, self.model.dropout, key)

    def placed(self, place_LD: Array, seg: Segment, body: Body) -> Array:
        """Return the learned position embeddings, h_BTD. Raises UserError beyond the table, or gives NaN if compiled."""
        position_BT, room = body.local_position(seg.position_BT), len(place_LD)
        beyond_BT = (position_BT >= room) & seg.mask_BT
        if not isinstance(beyond_BT, Tracer) and beyond_BT.any():
            last = int(jnp.where(beyond_BT, position_BT, 0).max())
            raise UserError(f"the model has {room} learned positions, too few for a text of {last + 1} tokens")
        return jnp.where(beyond_BT[..., None], jnp.nan, lookup(place_LD, jnp.minimum(position_BT, room - 1)))

    def encode(self, encoder: Encoder, handed: Mapping[str, Array], key: Array | None) -> dict[str, Array]:
        """Return the encoder's output under the names that cross-attention reads in `seg.shared`."""
        token_BS, length_B = handed["source/token"], handed["source/length"]
        for_embed, for_body = (None, None) if key is None else jax.random.split(key)
        place_BS = jnp.broadcast_to(jnp.arange(token_BS.shape[1]), token_BS.shape)
        seg = segment(place_BS, length_B).replace(token_BT=token_BS, shared=handed)

        def work(nothing):
            return nothing, encoder(self.embedded(token_BS, seg, for_embed, encoder.body), seg, key=for_body)

        _, h_BSD = skip_if_empty(length_B > 0, work, ())  # calls that only decode have sources of length 0
        return {"encoded/h": h_BSD, "encoded/length": length_B}

    def logits(self, h_BTD: Array, state: State, seg: Segment, key: Array | None) -> tuple[Array, State]:
        """Return the float32 logits of the next tokens, or the result of `model.output`, and the output's new state."""
        if self.output is not None:
            return self.output(h_BTD, self.embed[...], state, seg, key=key)
        w_DV = self.embed[...].T if self.to_logits is None else self.to_logits.w[...]
        return dense(h_BTD, w_DV, jnp.float32) * self.model.logit_scale, state


class LM:
    """A language model with memory, as pure functions.

    params = lm.init(key)                                   nested dict of float32 arrays
    state = lm.init_state(batch)                            empty state of `batch` streams, without parameters
    logits_BTV, state = lm(params, token_BT, state, seg)    seg=None: positions continue, no padding, no reset
    lm.declared("optim", "")                                per parameter, its module's declaration to the optimiser

    With `key` the model is stochastic (dropout), without it deterministic. Everything works under jit, grad and eval_shape.
    """

    def __init__(self, model: Model):
        self.model = model
        self.dims = Dims(**{f.name: getattr(model, f.name) for f in dataclasses.fields(Dims)})
        self._make = partial(Decoder, model, self.dims)
        self._graph, self._abstract = jax.eval_shape(lambda: nnx.split(self._make(jax.random.key(0))))
        self._static = nnx.merge(self._graph, self._abstract)

    def init(self, key: Array) -> Params:
        """Return random parameters, a nested dict of float32 arrays."""
        return jax.jit(lambda key: nnx.to_pure_dict(nnx.state(self._make(key))))(key)

    def init_state(self, batch_size: int) -> LMState:
        """Return the empty state of `batch_size` streams."""
        return self._static.init_state(batch_size)

    def __call__(
        self, params: Params, token_BT: Array, state: LMState, seg: Segment | None = None, *, key: Array | None = None
    ) -> tuple[Array, LMState]:
        """Return the logits [B, T, V] (or the result of `model.output`) and the new state."""
        return self._module(params)(token_BT, state, seg, key=key)

    def hidden(
        self, params: Params, token_BT: Array, state: LMState, seg: Segment | None = None, *, key: Array | None = None
    ) -> tuple[Array, LMState]:
        """Return h_BTD and the new state of a model without `output` and `head`. The logits are h @ `logit_weight(params)`."""
        return self._module(params).hidden(token_BT, state, seg, key=key)[:2]

    def logit_weight(self, params: Params) -> Array:
        """Return the matrix w_DV that maps h to logits."""
        w_DV = params["embed"].T if self.model.tied else params["to_logits"]["w"]
        return w_DV * self.model.logit_scale

    def _module(self, params: Params) -> Decoder:
        abstract = jax.tree.map(lambda v: v, self._abstract)
        nnx.replace_by_pure_dict(abstract, dict(params))
        return nnx.merge(self._graph, abstract)

    def encode(self, params: Params, token_BS: Array, state: LMState, length_B: Array | None = None, *, key=None) -> LMState:
        """Return the state in which every cross-attention has read a source of S tokens. Rows of length 0 keep their state.

        This is differentiable. Raises UserError if the model has no encoder.
        """
        self.check_reads(token_BS.shape[1])
        batch = len(token_BS)
        length_B = jnp.full(batch, token_BS.shape[1], jnp.int32) if length_B is None else length_B
        nothing = segment(state.position_B[:, None], jnp.zeros(batch, jnp.int32))
        seg = nothing.replace(shared={"source/token": token_BS, "source/length": length_B})
        return self(params, jnp.zeros((batch, 1), jnp.int32), state, seg, key=key)[1]

    @property
    def most_tokens(self) -> int | None:
        """The maximum length of a text, including `bos`, that the learned positions allow, or None for no limit."""
        most = self.model.max_position
        return None if self.model.position != "learned" or self._positions(most + 1) <= most else most

    def check_length(self, tokens: int, call: int, remedy: str) -> None:
        """Raise a UserError if there are too few learned positions for texts of `tokens` tokens, including `bos`.

        call: the maximum number of tokens per call. remedy: the end of the message, which says how to make texts shorter.
        """
        if self.model.position != "learned":
            return
        if self._positions(tokens) < tokens:  # the body restarts positions in each call
            tokens = self._positions(min(call, tokens))
            remedy = f"set model.body's segment to {self.model.max_position} or less"
        if tokens > self.model.max_position:
            raise UserError(
                f"a text has {tokens} tokens, but the model has {self.model.max_position} learned positions "
                f"(model.max_position): {remedy}"
            )

    def _positions(self, tokens: int) -> int:
        """Return the number of learned positions that a text of `tokens` tokens uses in a single call."""
        return 1 + int(np.asarray(self._static.body.local_position(jnp.arange(tokens)[None])).max())

    @property
    def source_capacity(self) -> int:
        """The number of source tokens that cross-attention can store, at most the learned positions. 0 without an encoder."""
        readers = [name for name in names(self.model.stacks) if MEMORIES[name].encoded and self.model.encoder]
        stored = min((self.model.memory[name].capacity for name in readers), default=0)
        return min(stored, self._source_positions or stored)

    @property
    def _source_positions(self) -> int | None:
        """The learned positions of the encoder, or None for no limit."""
        counts_anew = hasattr(getattr(self._static.encoder, "body", None), "local_position")
        return self.model.max_position if self.model.position == "learned" and not counts_anew else None

    def check_reads(self, tokens: int) -> None:
        """Raise a UserError unless the model has an encoder, and room for a source of `tokens` tokens."""
        readers = [name for name in names(self.model.stacks) if MEMORIES[name].encoded]
        if not self.model.encoder or not readers:
            known = ", ".join(name for name, cls in MEMORIES.items() if cls.encoded)
            raise UserError(
                f"this model has no encoder; set model.encoder and add a memory that reads it to model.stacks ({known})"
            )
        if tokens > (capacity := min(self.model.memory[name].capacity for name in readers)):
            raise UserError(
                f"memory.{readers[0]}.capacity={capacity} is too small for a source of {tokens} tokens; increase it (of a "
                f"pretrained model: context={tokens}, in `memtx generate` --context={tokens}), or cut the source (in a task: "
                f"data.task.source_tokens={capacity})"
            )
        if (room := self._source_positions) and tokens > room:
            raise UserError(f"a source has {tokens} tokens, but the model has {room} learned positions: cut the source")

    def check_learns(self, classes: int, spans: bool = False) -> None:
        """Raise a UserError unless the model gives logits of `classes` classes, of spans, or else of next tokens."""
        if spans:
            if self.model.output != "span":
                raise UserError("the labels are spans of a text; set model.output=span")
        elif not classes:
            self.check_next_token()
        elif self.model.output != "classes" or self.model.classes < classes:
            raise UserError(f"the labels have {classes} classes; set model.output=classes and model.classes={classes}")

    def check_next_token(self) -> None:
        """Raise a UserError unless the model gives logits of next tokens without having seen them."""
        if self.model.output:
            raise UserError(f"model.output={self.model.output} does not predict next tokens; set model.output=''")
        for name in names(self.model.stacks, self.model.body):
            if not MEMORIES[name].causal:
                raise UserError(f"{name} sees later tokens, so the model cannot be trained to predict them; set model.output")

    def declared(self, name: str, default: Any) -> Params:
        """Return the metadata `name` that modules set on their parameters, as a tree like the parameters."""
        variables = nnx.to_pure_dict(self._abstract, extract_fn=lambda v: v)
        is_variable = lambda v: isinstance(v, nnx.Variable)  # noqa: E731
        return jax.tree.map(lambda v: v.get_metadata().get(name, default), variables, is_leaf=is_variable)

    @property
    def abstract_params(self) -> Params:
        """The shapes and dtypes of the parameters."""
        return nnx.to_pure_dict(self._abstract)

    def num_params(self) -> int:
        """Return the number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params))


def build(model: Model, *, vocab_size: int = 0, subwords: Sequence[bytes] = ()) -> LM:
    """Build the language model of a Model.

    vocab_size: the vocabulary size of the tokenizer, used if `vocab_size` of the model is 0. subwords: the subwords of the
    tokenizer, for memories that compare the text of tokens. Raises UserError if no vocabulary size is set, or if the model's is
    smaller than the tokenizer's.
    """
    model = complete_model(model)
    size = model.vocab_size or vocab_size
    if not size:
        raise UserError("model.vocab_size is not set; set it in the config, or pass vocab_size to build")
    if size < vocab_size:
        raise UserError(f"model.vocab_size={size} is too small: the tokenizer has {vocab_size} tokens")
    if subwords:
        every = [*subwords, *[b""] * (size - len(subwords))]
        memory = {name: MEMORIES[name].of_tokens(config, every) for name, config in model.memory.items()}
        model = dataclasses.replace(model, memory=memory)
    return LM(dataclasses.replace(model, vocab_size=size))
