"""Recurrent Memory Transformer: memory tokens before and after each segment carry what is remembered through any layers.

    [. ; y ; m'] = body([m ; x ; m])        x: a segment of n tokens; m: M memory tokens, m' the body's outputs for the last M
    m <- norm m'                            at the end of each segment; m starts at a learned value

The layers inside see one segment and its memory tokens: their own memory is wiped at each segment, row by row
(inner="keep": it runs on, as in the paper's Transformer-XL with memory tokens). Layers must be causal, and are called with the
tokens as they come: a segment's first call brings the read tokens, its last one the write tokens, so that results do not
depend on calls. So an inner memory of keys and values must hold a whole segment, n + 2 M tokens (`full` with that capacity,
`window` with that window), for a token to see all of its segment; any other causal layer is right too, and then sees what it
sees of it. Inner positions count from 0 in each segment, read tokens first.

What is differentiable: everything, through the memory tokens as far back as the caller's `detach` lets it; no boundary of its
own. Each segment is recomputed in the backward pass (remat).

The encoder form, `rmt_encoder`, is for layers that see all of a segment, `bidirectional` ones, and has memory tokens before it:

    [m' ; y] = body([m ; x])            m <- norm m'

Such a segment cannot come in parts, so each call is cut into segments from its own start, and a shorter one at its end is a
segment too: calls of a multiple of n tokens give what one call gives. Layers' own memory is fresh in each segment.

Deviations: m' is normalised by an RMSNorm of RMT's own (in the paper's code it has passed the model's final norm), and without
one it would grow from segment to segment; `rmt` is causal everywhere, as the authors' decoder; the memory is cleared at the
start of a document.

Source: Bulatov et al. 2022 (arXiv 2207.06881), 2023 (2304.11062).
B stream, T time, K blocks, Q slots in a block, C tokens of a segment, M memory tokens, I tokens of an inner call, D model.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.errors import check_known, positive
from memtx.memory.base import Dims, Layer, Segment, State, collect, emit_all, pytree, reset, scan
from memtx.nn.linear import Norm, normal
from memtx.ops.grid import Grid, skip_if_empty
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


@pytree
class Part:
    """What one block of the grid brings to each row of a segment."""

    x_BQD: Array
    token_BQ: Array
    valid_BQ: Array
    slot_BQ: Array
    start_B: Array
    complete_B: Array
    index: Array


class Segmented(nnx.Module):
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
        path: ClassVar[str] = "memory.rmt"

        def __post_init__(self):
            positive(self, self.path, "segment", "memory")

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

    def begin(self, inner: Segment, body: State, part: Part) -> tuple[Segment, State]:
        """Before a call in which some rows start or complete a segment."""
        return inner, body

    def finish(self, memory: State, written_BMD: Array, complete_B: Array) -> State:
        """After it: `written` are the body's outputs for the last memory tokens, where rows complete a segment."""
        return memory

    def __call__(self, x_BTD, state: Recurrence, seg: Segment, *, key: Array | None = None):
        grid = Grid(seg.mask_BT, state.offset_B, self.config.segment)

        def call(boundary: bool):
            def work(state: Recurrence, part: Part):
                return self.inner_call(state, part, seg, None if key is None else jax.random.fold_in(key, part.index), boundary)

            return rematerialised(work) if self.config.remat else work

        def step(state: Recurrence, part: Part):
            """One inner call: with memory tokens if a segment of any row starts or ends here, else of the text alone."""
            need = jnp.where(part.start_B | part.complete_B, 2, part.valid_BQ[:, 0]).max()
            state, y = skip_if_empty(need == 2, call(True), state, part)
            state, z = skip_if_empty(need == 1, call(False), state, part)
            return state, y + z

        token_BT = jnp.zeros_like(seg.position_BT) if seg.token_BT is None else seg.token_BT
        tables = (grid.pack(x_BTD), grid.pack(token_BT), grid.valid_KBQ, grid.slot_KBQ, grid.start_KB, grid.complete_KB)
        state, y_KBQD = scan(step, state, Part(*tables, jnp.arange(grid.blocks)))
        return grid.unpack(y_KBQD), dataclasses.replace(state, offset_B=grid.offset_B)

    def inner_call(self, state: Recurrence, part: Part, seg: Segment, key: Array | None, boundary: bool):
        """The body's call on [read tokens ; text ; write tokens], packed to the left in each row, or on the text alone."""
        batch, slots, _ = part.x_BQD.shape
        before, after = (self.before, self.after) if boundary else (0, 0)
        length = before + slots + after
        place = jnp.arange(length)
        texts_B = part.valid_BQ.sum(1, dtype=jnp.int32)
        lead_B = jnp.where(part.start_B, before, 0)
        written_B = lead_B + texts_B
        text = jnp.where(part.valid_BQ, lead_B[:, None] + place[:slots], length)
        write = jnp.where(part.complete_B[:, None], written_B[:, None] + place[:after], length)
        read = jnp.where(part.start_B[:, None], place[:before], length)

        x_BID = put(jnp.zeros((batch, length, self.width), part.x_BQD.dtype), text, part.x_BQD)
        if boundary:
            tokens = self.memory_tokens(state.memory)
            memory_BMD = jnp.broadcast_to(tokens, (batch, *tokens.shape[-2:]))
            x_BID = put(put(x_BID, read, memory_BMD[:, :before]), write, memory_BMD[:, :after])
        first_B = self.first_position(state.memory) + jnp.where(part.start_B, 0, self.before + part.slot_BQ[:, 0])
        inner = seg.replace(
            position_BT=first_B[:, None] + place,
            length_B=written_B + jnp.where(part.complete_B, after, 0),
            reset_B=jnp.zeros_like(seg.reset_B),
            token_BT=put(jnp.zeros((batch, length), jnp.int32), text, part.token_BQ),
        )
        body, memory = state.body, state.memory
        if boundary:
            inner, body = self.begin(inner, body, part)
        y_BID, body = self.body(x_BID, body, inner, key=key)
        if boundary:
            memory = self.finish(memory, take(y_BID, jnp.minimum(write, length - 1)), part.complete_B)
        y_BQD = jnp.where(part.valid_BQ[..., None], take(y_BID, jnp.minimum(text, length - 1)), 0)
        return Recurrence(body, memory, state.offset_B), y_BQD


class RMT(Segmented):
    """Body site: x_BTD -> x_BTD around `body`."""

    kind = "fixed memory tokens"

    @dataclasses.dataclass(frozen=True)
    class Config(Segmented.Config):
        inner: str = "wipe"  # wipe | keep: what becomes of the layers' own memory at the end of a segment

        def __post_init__(self):
            super().__post_init__()
            check_known(self.inner, ("wipe", "keep"), f"{self.path}.inner")

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

    def begin(self, inner: Segment, body: State, part: Part) -> tuple[Segment, State]:
        return inner, reset(self.body, body, part.start_B) if self.config.inner == "wipe" else body

    def finish(self, memory: Tokens, written_BMD: Array, complete_B: Array) -> Tokens:
        new = self.norm(written_BMD.astype(jnp.float32))
        tokens = jnp.where(complete_B[:, None, None], new, memory.memory_BMD)
        return Tokens(tokens, memory.segments_B + complete_B.astype(jnp.int32))


class RMTEncoder(nnx.Module):
    """Body site: x_BTD -> x_BTD around `body`, segment by segment."""

    site = "body"
    kind = "fixed memory tokens"
    block = "bidirectional"
    causal = False

    @dataclasses.dataclass(frozen=True)
    class Config(Segmented.Config):
        path: ClassVar[str] = "memory.rmt_encoder"

    tiny = (Config(segment=5, memory=2, remat=False),)

    def __init__(self, config: Config, dims: Dims, key: Array, body: Layer):
        self.config, self.width, self.body = config, dims.width, body
        self.initial = normal(key, (config.memory, dims.width), 1.0, optim="no_decay")
        self.norm = Norm("rms", dims.width)

    def init_state(self, batch_size: int) -> Tokens:
        return Tokens(jnp.zeros((batch_size, self.config.memory, self.width)), jnp.zeros(batch_size, jnp.int32))

    def local_position(self, position_BT: Array) -> Array:
        """What a learned table of places is asked for: it starts again in each segment of a call."""
        return jnp.broadcast_to(jnp.arange(position_BT.shape[1]) % self.config.segment, position_BT.shape)

    def __call__(self, x_BTD: Array, state: Tokens, seg: Segment, *, key: Array | None = None):
        batch, time, width = x_BTD.shape
        size = min(self.config.segment, time)
        segments = -(-time // size)

        def cut(a_BT):
            """[B, T, ...] -> [P, B, C, ...]"""
            padded = jnp.pad(a_BT, ((0, 0), (0, segments * size - time)) + ((0, 0),) * (a_BT.ndim - 2))
            return padded.reshape(batch, segments, size, *a_BT.shape[2:]).swapaxes(0, 1)

        def work(state: Tokens, part):
            x_BCD, token_BC, length_B, index = part
            segment_key = None if key is None else jax.random.fold_in(key, index)
            return self.segment(x_BCD, token_BC, length_B, state, seg, segment_key)

        def step(state: Tokens, part):
            return skip_if_empty(part[2] > 0, rematerialised(work) if self.config.remat else work, state, part)

        token_BT = jnp.zeros_like(seg.position_BT) if seg.token_BT is None else seg.token_BT
        length_PB = jnp.clip(seg.length_B - size * jnp.arange(segments)[:, None], 0, size)
        state, y_PBCD = scan(step, state, (cut(x_BTD), cut(token_BT), length_PB, jnp.arange(segments)))
        return y_PBCD.swapaxes(0, 1).reshape(batch, segments * size, width)[:, :time], state

    def segment(self, x_BCD: Array, token_BC: Array, length_B: Array, state: Tokens, seg: Segment, key: Array | None):
        """One segment, shorter or none at all in some rows."""
        batch, memory = len(x_BCD), self.config.memory
        tokens_BMD = jnp.where((state.segments_B == 0)[:, None, None], self.initial[...], state.memory_BMD)
        x_BID = jnp.concatenate([tokens_BMD.astype(x_BCD.dtype), x_BCD], 1)
        inner = seg.replace(
            position_BT=jnp.broadcast_to(jnp.arange(x_BID.shape[1]), x_BID.shape[:2]),
            length_B=memory + length_B,
            reset_B=jnp.zeros_like(seg.reset_B),
            token_BT=jnp.pad(token_BC, ((0, 0), (memory, 0))),
        )
        y_BID, _ = self.body(x_BID, self.body.init_state(batch), inner, key=key)
        read_B = length_B > 0
        new_BMD = self.norm(y_BID[:, :memory].astype(jnp.float32))
        kept_BMD = jnp.where(read_B[:, None, None], new_BMD, state.memory_BMD)
        return Tokens(kept_BMD, state.segments_B + read_B), y_BID[:, memory:]


def rematerialised(f):
    """f under jax.checkpoint, what it emits passed on."""
    tapped = jax.checkpoint(collect(f), policy=jax.checkpoint_policies.save_only_these_names("read"))

    def g(*args):
        out, aux = tapped(*args)
        emit_all(aux)
        return out

    return g
