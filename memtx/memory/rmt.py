"""Recurrent Memory Transformer: memory tokens around each segment carry information from one segment to the next.

    [. ; y ; m'] = body([m ; x ; m])        x: a segment of n tokens; m: M memory tokens; m': the body's outputs at the last M
    m <- norm m'                            at the end of each segment; m starts at a learned value

The layers inside see one segment and its memory tokens. Their own state is reset at the start of each segment, row by row.
With inner="keep" it is kept, as in the paper's Transformer-XL with memory tokens. Layers must be causal. They read the tokens
of a segment in the order of the text, over one call or many: the read tokens come before its first token, the write tokens
after its last. A key-value memory inside must therefore hold a whole segment, n + 2 M tokens. `full` is sized automatically;
set the window of `window` yourself. Other causal layers work too, within their own reach. Inner positions count from 0 in each
segment, read tokens included.

What is differentiable: everything. Gradients pass through the memory tokens until the caller detaches the state. The backward
pass recomputes each segment (remat). `rmt_encoder` is the form for layers that see all of a segment.

Deviations: RMT has a norm for m'. In the paper's code m' has passed the model's final norm, and without a norm it would grow
from segment to segment. `rmt` is causal everywhere, like the authors' decoder. A reset at the start of a document clears the
memory.

Source: Bulatov et al. 2022 (arXiv 2207.06881), 2023 (2304.11062).
B stream, T time, Q slots of a part of a segment, C tokens of a segment, M memory tokens, I tokens of an inner call, D model.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memtx.core import Dims, Layer, Memory, Segment, State, pytree, reset
from memtx.errors import check_known, positive
from memtx.nn.linear import Norm, normal
from memtx.ops.chunks import ChunkPart, change_rows, in_chunks
from memtx.ops.grid import skip_if_empty
from memtx.ops.rows import take

STARTS, ENDS = "segment/starts_B", "segment/ends_B"  # in `seg.shared` of an inner call: the rows whose segment starts or ends


@pytree
class Recurrence:
    """The states of the body and of the memory, and how many tokens of its segment each row has read."""

    body: State
    memory: State
    offset_B: Array


@pytree
class Tokens:
    """The memory tokens that the last segment wrote, and the number of finished segments. While it is 0, they are not read."""

    memory_BMD: Array
    segments_B: Array


class Segmented(Memory):
    """A body that reads segments with memory tokens around them. RMT and ARMT are built on it.

    It carries nothing from segment to segment: the memory tokens of each segment are the learned ones. A subclass sets `before`
    and `after`, and overrides the four methods from `init_memory` to `write` if it carries more.
    """

    site = "body"
    block = "full"

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The settings that RMT, its encoder form and ARMT share."""

        segment: int = 128  # tokens between two writes
        memory: int = 16  # memory tokens
        remat: bool = True  # recompute each segment in the backward pass

        def __post_init__(self):
            positive(self, "segment", "memory")

    before: int  # memory tokens before a segment
    after: int  # memory tokens after it

    @classmethod
    def room(cls, config) -> int | None:
        """Return the tokens of a segment and of the memory around it."""
        return config.segment + 2 * config.memory

    def __init__(self, config, dims: Dims, key: Array, body: Layer):
        self.config, self.width, self.body = config, dims.width, body
        self.initial = normal(key, (config.memory, dims.width), 1.0, optim="no_decay")  # standard deviation 1, like embeddings

    def init_state(self, batch_size: int) -> Recurrence:
        """Return the state before the first segment."""
        offset_B = jnp.zeros(batch_size, jnp.int32)
        return Recurrence(self.body.init_state(batch_size), self.init_memory(batch_size), offset_B)

    def init_memory(self, batch_size: int) -> State:
        """Return the part of the state that is outside the body."""
        return ()

    def memory_tokens(self, memory: State) -> Array:
        """Return the memory tokens of the current segment, [B, M, D], or [M, D] if they are the same in all rows."""
        return self.initial[...]

    def start(self, body: State, memory: State, starts_B: Array) -> tuple[State, Array | int]:
        """Return the body's state with new segments started, and the inner position of each row's segment."""
        return body, 0

    def write(self, memory: State, written_BMD: Array) -> State:
        """Return the memory after a segment. `written_BMD` are the body's outputs at the write tokens."""
        return memory

    def __call__(self, x_BTD: Array, state: Recurrence, seg: Segment, *, key: Array | None = None):
        """Read the call's tokens segment by segment. x and y are BTD."""

        def step(carry, tokens, part: ChunkPart):
            state, index = carry
            read = partial(self.read, tokens, part, seg, None if key is None else jax.random.fold_in(key, index))
            if part.valid_BQ.shape[1] == self.config.segment:
                state, y_BQD = read(self.before, self.after, state)
            else:  # memory tokens if a segment of any row starts or ends here, else the text alone
                edge = (part.starts_B | part.ends_B).any()
                state, y_BQD = skip_if_empty(edge, partial(read, self.before, self.after), state)
                state, z_BQD = skip_if_empty(~edge, partial(read, 0, 0), state)
                y_BQD = y_BQD + z_BQD
            return (state, index + 1), y_BQD

        size, remat = self.config.segment, self.config.remat
        token_BT = jnp.zeros_like(seg.position_BT) if seg.token_BT is None else seg.token_BT
        carry = (state, jnp.zeros((), jnp.int32))
        y_BTD, (state, _) = in_chunks(size, step, (x_BTD, token_BT), carry, state.offset_B, seg, remat=remat)
        return y_BTD, dataclasses.replace(state, offset_B=(state.offset_B + seg.length_B) % size)

    def read(self, tokens, part: ChunkPart, seg: Segment, key: Array | None, before: int, after: int, state: Recurrence):
        """Call the body on [read tokens ; text ; write tokens] of one part of each row's segment. Returns the state and y_BQD.

        before, after: how many memory tokens there may be. Both are 0 if no row starts or ends its segment in this part.
        """
        x_BQD, token_BQ = tokens
        around = Around(part, before, after)
        tokens_BMD = self.memory_tokens(state.memory).astype(x_BQD.dtype)
        m_BMD = jnp.broadcast_to(tokens_BMD, (len(x_BQD), *tokens_BMD.shape[-2:]))
        x_BID = around.pack(jnp.concatenate([m_BMD[:, :before], x_BQD, m_BMD[:, :after]], 1))
        token_BI = around.pack(jnp.pad(token_BQ, ((0, 0), (before, after))))

        body, first_B = self.start(state.body, state.memory, part.starts_B)
        first_B = first_B + jnp.where(part.starts_B, 0, self.before + part.slot_BQ[:, 0])
        inner = Segment(
            position_BT=first_B[:, None] + jnp.arange(x_BID.shape[1]),
            length_B=jnp.asarray(around.write_B + part.ends_B * after),
            reset_B=jnp.zeros_like(seg.reset_B),
            document_B=seg.document_B,
            token_BT=token_BI,
            shared={**seg.shared, STARTS: part.starts_B, ENDS: part.ends_B},
        )
        y_BID, body = self.body(x_BID, body, inner, key=key)
        written_BMD = take(y_BID, around.write_index(self.config.memory))
        memory = change_rows(part.ends_B, lambda memory: self.write(memory, written_BMD), state.memory)
        return Recurrence(body, memory, state.offset_B), take(y_BID, around.text_BQ)


class Around:
    """The indices of read tokens, text and write tokens in an inner call of I = before + Q + after tokens.

    Each row has read tokens if its segment starts in this part, then its text, then write tokens if its segment ends, then
    padding. Operators alone make the indices, so they are NumPy arrays, and reads are slices, if the part is.
    """

    def __init__(self, part: ChunkPart, before: int, after: int):
        slots = part.valid_BQ.shape[1]
        self.size = before + slots + after
        self.text_B = part.starts_B * before  # the index of the first token of the text
        self.write_B = self.text_B + part.length_B  # and of the first write token
        self.text_BQ = self.text_B[:, None] + np.arange(slots)
        at_I = np.arange(self.size)
        skipped_BI = (before - self.text_B)[:, None] + (at_I >= self.write_B[:, None]) * (slots - part.length_B)[:, None]
        self.source_BI = at_I + skipped_BI

    def pack(self, joined_BI: Array) -> Array:
        """Move the tokens of [before ; Q ; after], [B, I, ...], to the left, over those that the row does not have."""
        return take(joined_BI, self.source_BI)

    def write_index(self, memory: int) -> Array | np.ndarray:
        """Return the indices of the write tokens, [B, M]."""
        return self.write_B[:, None] + np.arange(memory)


class RMT(Segmented):
    """Body site: x_BTD -> x_BTD around `body`."""

    kind = "fixed memory tokens"
    entries = False

    @dataclasses.dataclass(frozen=True)
    class Config(Segmented.Config):
        """The settings of RMT."""

        inner: str = "wipe"  # wipe | keep: whether the state of the layers inside is reset at the start of each segment

        def __post_init__(self):
            super().__post_init__()
            check_known(self.inner, ("wipe", "keep"), "inner")

    tiny = (Config(segment=4, memory=2, remat=False),)

    @classmethod
    def room(cls, config) -> int | None:
        """Return the tokens of a segment and of the memory around it, or None with inner="keep"."""
        return None if config.inner == "keep" else super().room(config)

    def __init__(self, config: Config, dims: Dims, key: Array, body: Layer):
        super().__init__(config, dims, key, body)
        self.before = self.after = config.memory
        self.norm = Norm("rms", dims.width)

    def init_memory(self, batch_size: int) -> Tokens:
        """Return memory tokens of no segment."""
        return Tokens(jnp.zeros((batch_size, self.config.memory, self.width)), jnp.zeros(batch_size, jnp.int32))

    def memory_tokens(self, memory: Tokens) -> Array:
        """Return m: the tokens that the last segment wrote, or the learned value in a row's first segment."""
        return jnp.where((memory.segments_B == 0)[:, None, None], self.initial[...], memory.memory_BMD)

    def start(self, body: State, memory: Tokens, starts_B: Array) -> tuple[State, Array | int]:
        """Reset the layers inside, or keep them, with positions that go on from segment to segment."""
        if self.config.inner == "wipe":
            return reset(self.body, body, starts_B), 0
        return body, memory.segments_B * (self.before + self.config.segment + self.after)

    def write(self, memory: Tokens, written_BMD: Array) -> Tokens:
        """m <- norm m'"""
        return Tokens(self.norm(written_BMD.astype(jnp.float32)), memory.segments_B + 1)
