"""Recurrent Memory Transformer: memory tokens before and after each segment carry what is remembered through any layers.

    [. ; y ; m'] = body([m ; x ; m])        x: a segment of n tokens; m: M memory tokens, m' the body's outputs for the last M
    m <- norm m'                            at the end of each segment; m starts at a learned value

The layers inside see one segment and its memory tokens: their own memory is wiped at each segment, row by row
(inner="keep": it runs on, as in the paper's Transformer-XL with memory tokens). Layers must be causal, and are called with the
tokens as they come: a segment's first call brings the read tokens, its last one the write tokens, so that results do not
depend on calls. So an inner memory of keys and values must hold a whole segment, n + 2 M tokens, for a token to see all of its
segment (`full` is cut to that, `window` needs that window); any other causal layer is right too, and then sees what it sees of
it. Inner positions count from 0 in each segment, read tokens first.

What is differentiable: everything, through the memory tokens as far back as the caller's `detach` lets it; no boundary of its
own. Each segment is recomputed in the backward pass (remat).

`rmt_encoder` is the form for layers that see all of a segment.

Deviations: m' is normalised by an RMSNorm of RMT's own (in the paper's code it has passed the model's final norm), and without
one it would grow from segment to segment; `rmt` is causal everywhere, as the authors' decoder; the memory is cleared at the
start of a document.

Source: Bulatov et al. 2022 (arXiv 2207.06881), 2023 (2304.11062).
B stream, T time, Q slots in a block, C tokens of a segment, M memory tokens, I tokens of an inner call, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax

from memtx.core import Dims, Layer, Memory, Segment, State, pytree, rematerialised, reset
from memtx.errors import check_known, positive
from memtx.nn.linear import Norm, normal
from memtx.ops.chunks import Place, in_chunks
from memtx.ops.grid import skip_if_empty
from memtx.ops.rows import put, take


@pytree
class Recurrence:
    body: State
    memory: State
    offset_B: Array  # tokens in the segment under way


@pytree
class Tokens:
    memory_BMD: Array  # of the segment under way; in a row's first segment the learned value stands for it
    segments_B: Array  # finished segments


class Segmented(Memory):
    """Memory tokens around each segment, and a body called on both: what RMT and ARMT have in common.

    Of itself it carries nothing: the tokens are the learned ones in every segment. A subclass says what is remembered.
    """

    site = "body"
    block = "full"

    @dataclasses.dataclass(frozen=True)
    class Config:
        segment: int = 128  # tokens between two writes
        memory: int = 16  # memory tokens
        remat: bool = True  # recompute each segment in the backward pass

        def __post_init__(self):
            positive(self, "segment", "memory")

    @classmethod
    def room(cls, config) -> int | None:
        """A segment and the memory tokens around it."""
        return config.segment + 2 * config.memory

    before: int  # memory tokens that a segment begins with, and ends with
    after: int

    def __init__(self, config, dims: Dims, key: Array, body: Layer):
        self.config, self.width, self.body = config, dims.width, body
        self.initial = normal(key, (config.memory, dims.width), 1.0, optim="no_decay")  # as embeddings: deviation 1

    def init_state(self, batch_size: int) -> Recurrence:
        offset_B = jnp.zeros(batch_size, jnp.int32)
        return Recurrence(self.body.init_state(batch_size), self.init_memory(batch_size), offset_B)

    def init_memory(self, batch_size: int) -> State:
        """What is carried from segment to segment outside the body."""
        return ()

    def memory_tokens(self, memory: State) -> Array:
        """What the memory tokens of the segment under way are: [B, M, D], or the same for all rows [M, D]."""
        return self.initial[...]

    def first_position(self, memory: State) -> Array | int:
        """Where the segment under way begins, as the layers inside see it."""
        return 0

    def begin(self, inner: Segment, body: State, place: Place | None) -> tuple[Segment, State]:
        """Before a call in which some rows start or complete a segment; place None: in which every row has a whole one."""
        return inner, body

    def end(self, body: State) -> State:
        """After a call in which every row had a whole segment."""
        return body

    def finish(self, memory: State, written_BMD: Array, complete_B: Array) -> State:
        """After any: `written` are the body's outputs for the last memory tokens, where rows complete a segment."""
        return memory

    def __call__(self, x_BTD, state: Recurrence, seg: Segment, *, key: Array | None = None):
        size, time = self.config.segment, x_BTD.shape[1]

        def step(carry, tokens, place: Place | None):
            state, index = carry
            step_key = None if key is None else jax.random.fold_in(key, index)

            def call(boundary: bool):
                def work(state: Recurrence, tokens, place: Place | None):
                    x_BQD, token_BQ = tokens
                    if place is None:
                        return self.whole_call(state, x_BQD, token_BQ, seg, step_key)
                    return self.inner_call(state, x_BQD, token_BQ, place, seg, step_key, boundary)

                return rematerialised(work) if self.config.remat else work

            if place is None or time >= size:
                state, y_BQD = call(True)(state, tokens, place)
            else:  # memory tokens if a segment of any row starts or ends here, else the text alone
                edge = (place.begins_B | place.complete_B).any()
                state, y_BQD = skip_if_empty(edge, call(True), state, tokens, place)
                state, z_BQD = skip_if_empty(~edge, call(False), state, tokens, place)
                y_BQD = y_BQD + z_BQD
            return (state, index + 1), y_BQD

        token_BT = jnp.zeros_like(seg.position_BT) if seg.token_BT is None else seg.token_BT
        carry = (state, jnp.zeros((), jnp.int32))
        y_BTD, (state, _) = in_chunks(size, step, (x_BTD, token_BT), carry, state.offset_B, seg)
        return y_BTD, dataclasses.replace(state, offset_B=(state.offset_B + seg.length_B) % size)

    def inner_call(self, state: Recurrence, x_BQD, token_BQ, place: Place, seg: Segment, key: Array | None, boundary: bool):
        """The body's call on [read tokens ; text ; write tokens], packed to the left in each row, or on the text alone."""
        batch, slots, _ = x_BQD.shape
        before, after = (self.before, self.after) if boundary else (0, 0)
        length = before + slots + after
        index = jnp.arange(length)
        texts_B = place.valid_BQ.sum(1, dtype=jnp.int32)
        lead_B = jnp.where(place.begins_B, before, 0)
        written_B = lead_B + texts_B
        text = jnp.where(place.valid_BQ, lead_B[:, None] + index[:slots], length)
        write = jnp.where(place.complete_B[:, None], written_B[:, None] + index[:after], length)
        read = jnp.where(place.begins_B[:, None], index[:before], length)

        x_BID = put(jnp.zeros((batch, length, self.width), x_BQD.dtype), text, x_BQD)
        if boundary:
            tokens = self.memory_tokens(state.memory)
            memory_BMD = jnp.broadcast_to(tokens, (batch, *tokens.shape[-2:]))
            x_BID = put(put(x_BID, read, memory_BMD[:, :before]), write, memory_BMD[:, :after])
        first_B = self.first_position(state.memory) + jnp.where(place.begins_B, 0, self.before + place.slot_BQ[:, 0])
        inner = seg.replace(
            position_BT=first_B[:, None] + index,
            length_B=written_B + jnp.where(place.complete_B, after, 0),
            reset_B=jnp.zeros_like(seg.reset_B),
            token_BT=put(jnp.zeros((batch, length), jnp.int32), text, token_BQ),
        )
        body, memory = state.body, state.memory
        if boundary:
            inner, body = self.begin(inner, body, place)
        y_BID, body = self.body(x_BID, body, inner, key=key)
        if boundary:
            memory = self.finish(memory, take(y_BID, jnp.minimum(write, length - 1)), place.complete_B)
        y_BQD = jnp.where(place.valid_BQ[..., None], take(y_BID, jnp.minimum(text, length - 1)), 0)
        return Recurrence(body, memory, state.offset_B), y_BQD

    def whole_call(self, state: Recurrence, x_BCD: Array, token_BC: Array, seg: Segment, key: Array | None):
        """What `inner_call` gives when every row has a whole segment."""
        batch, size, _ = x_BCD.shape
        tokens = self.memory_tokens(state.memory).astype(x_BCD.dtype)
        memory_BMD = jnp.broadcast_to(tokens, (batch, *tokens.shape[-2:]))
        x_BID = jnp.concatenate([memory_BMD[:, : self.before], x_BCD, memory_BMD[:, : self.after]], 1)
        length = x_BID.shape[1]
        first_B = jnp.broadcast_to(self.first_position(state.memory), batch)
        inner = seg.replace(
            position_BT=first_B[:, None] + jnp.arange(length),
            length_B=jnp.full(batch, length, jnp.int32),
            reset_B=jnp.zeros_like(seg.reset_B),
            token_BT=jnp.pad(token_BC, ((0, 0), (self.before, self.after))),
        )
        inner, body = self.begin(inner, state.body, None)
        y_BID, body = self.body(x_BID, body, inner, key=key)
        body = self.end(body)
        end = self.before + size
        memory = self.finish(state.memory, y_BID[:, end:], jnp.ones(batch, bool))
        return Recurrence(body, memory, state.offset_B), y_BID[:, self.before : end]


class RMT(Segmented):
    """Body site: x_BTD -> x_BTD around `body`."""

    kind = "fixed memory tokens"
    entries = False

    @dataclasses.dataclass(frozen=True)
    class Config(Segmented.Config):
        inner: str = "wipe"  # wipe | keep: what becomes of the layers' own memory at the end of a segment

        def __post_init__(self):
            super().__post_init__()
            check_known(self.inner, ("wipe", "keep"), "inner")

    @classmethod
    def room(cls, config) -> int | None:
        return None if config.inner == "keep" else super().room(config)

    tiny = (Config(segment=4, memory=2, remat=False),)

    def __init__(self, config: Config, dims: Dims, key: Array, body: Layer):
        super().__init__(config, dims, key, body)
        self.before = self.after = config.memory
        self.norm = Norm("rms", dims.width)

    def init_memory(self, batch_size: int) -> Tokens:
        return Tokens(jnp.zeros((batch_size, self.config.memory, self.width)), jnp.zeros(batch_size, jnp.int32))

    def memory_tokens(self, memory: Tokens) -> Array:
        return jnp.where((memory.segments_B == 0)[:, None, None], self.initial[...], memory.memory_BMD)

    def first_position(self, memory: Tokens) -> Array | int:
        whole = self.before + self.config.segment + self.after
        return memory.segments_B * whole if self.config.inner == "keep" else 0

    def begin(self, inner: Segment, body: State, place: Place | None) -> tuple[Segment, State]:
        if self.config.inner == "keep":
            return inner, body
        if place is None:
            return inner, self.body.init_state(len(inner.length_B))
        return inner, reset(self.body, body, place.begins_B)

    def end(self, body: State) -> State:
        return body if self.config.inner == "keep" else lax.stop_gradient(body)  # nobody will read it: no gradient is made

    def finish(self, memory: Tokens, written_BMD: Array, complete_B: Array) -> Tokens:
        new = self.norm(written_BMD.astype(jnp.float32))
        tokens = jnp.where(complete_B[:, None, None], new, memory.memory_BMD)
        return Tokens(tokens, memory.segments_B + complete_B.astype(jnp.int32))
