"""A body that reads a text in segments, with memory tokens around each segment. RMT and ARMT share it.

    [. ; y ; m'] = body([m ; x ; m])        x: n tokens of a segment, m: memory tokens, m': the body's outputs at the last m

Layers must be causal. They read the tokens of a segment in the order of the text, in one call or several: the read tokens come
before its first token, the write tokens after its last. Results therefore do not depend on how a text is cut into calls. A
key-value memory inside must hold a whole segment, n + 2 M tokens, for a token to see all of its segment. `full` is sized
automatically. Set the window of `window` yourself. Other causal layers work too, within their own reach. Inner positions count
from 0 in each segment, including read tokens. The backward pass recomputes each segment (remat).

B stream, T time, Q slots of a part of a segment, M memory tokens, I tokens of an inner call, D model.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from memtx.core import Dims, Layer, Memory, Segment, State, pytree
from memtx.errors import positive
from memtx.nn.linear import normal
from memtx.nn.reads import without_reads
from memtx.ops.chunks import ChunkPart, change_rows, in_chunks
from memtx.ops.grid import skip_if_empty
from memtx.ops.rows import take

STARTS, ENDS = "segment/starts_B", "segment/ends_B"  # in `seg.shared` of an inner call


@pytree
class Recurrence:
    """The states of the body and of the memory, and how many tokens of its segment each row has read."""

    body: State
    memory: State
    offset_B: Array


class Segmented(Memory):
    """A body that reads segments with memory tokens around them. RMT and ARMT are built on it.

    It carries nothing from segment to segment: the memory tokens are always the learned ones. A subclass sets `around`. To
    carry more, it overrides the four methods from `init_memory` to `write`.
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

    around: tuple[int, int]  # how many memory tokens there are before and after a segment

    @classmethod
    def room(cls, config) -> int | None:
        """Return the number of tokens in a segment with its memory tokens."""
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

    def memory_tokens(self, memory: State, batch_size: int) -> Array:
        """Return the memory tokens m of the current segment, [B, M, D]."""
        return jnp.broadcast_to(self.initial[...], (batch_size, *self.initial.shape))

    def start(self, body: State, memory: State, starts_B: Array) -> tuple[State, Array | int]:
        """Return the body's state with new segments started, and the inner position of each row's segment."""
        return body, 0

    def write(self, memory: State, written_BMD: Array) -> State:
        """Return the memory after a segment. `written_BMD` are the body's outputs at the write tokens."""
        return memory

    def __call__(self, x_BTD: Array, state: Recurrence, seg: Segment, *, key: Array | None = None):
        """Read the call's tokens segment by segment: x_BTD -> y_BTD."""

        def step(carry, tokens, part: ChunkPart):
            state, index = carry
            step_key = None if key is None else jax.random.fold_in(key, index)
            call = partial(self.call_body, tokens, part, seg, step_key)
            if part.valid_BQ.shape[1] == self.config.segment:
                state, y_BQD = call(self.around, state)
            else:  # memory tokens if a segment of any row starts or ends here, else the text alone
                edge = (part.starts_B | part.ends_B).any()
                state, y_BQD = skip_if_empty(edge, partial(call, self.around), state)
                state, z_BQD = skip_if_empty(~edge, partial(call, (0, 0)), state)
                y_BQD = y_BQD + z_BQD
            return (state, index + 1), y_BQD

        size, remat = self.config.segment, self.config.remat
        token_BT = jnp.zeros_like(seg.position_BT) if seg.token_BT is None else seg.token_BT
        carry = (state, jnp.zeros((), jnp.int32))
        y_BTD, (state, _) = in_chunks(size, step, (x_BTD, token_BT), carry, state.offset_B, seg, remat=remat)
        return y_BTD, dataclasses.replace(state, offset_B=(state.offset_B + seg.length_B) % size)

    def call_body(self, tokens, part: ChunkPart, seg: Segment, key: Array | None, around: tuple[int, int], state: Recurrence):
        """Call the body on [read tokens ; text ; write tokens] of a part of each row's segment. Returns the state and y_BQD."""
        (x_BQD, token_BQ), (before, after) = tokens, around
        source_BI, text_BQ, write_BM = inner_indices(part, before, after, self.config.memory)
        m_BMD = self.memory_tokens(state.memory, len(x_BQD)).astype(x_BQD.dtype)
        x_BID = take(jnp.concatenate([m_BMD[:, :before], x_BQD, m_BMD[:, :after]], 1), source_BI)

        body, first_B = self.start(state.body, state.memory, part.starts_B)
        first_B = first_B + jnp.where(part.starts_B, 0, self.around[0] + part.slot_BQ[:, 0])
        inner = seg.replace(
            position_BT=first_B[:, None] + jnp.arange(x_BID.shape[1]),
            length_B=jnp.asarray(part.starts_B * before + part.length_B + part.ends_B * after),
            reset_B=jnp.zeros_like(seg.reset_B),
            token_BT=take(jnp.pad(token_BQ, ((0, 0), (before, after))), source_BI),
            shared={**seg.shared, STARTS: part.starts_B, ENDS: part.ends_B},
        )
        y_BID, body = without_reads(self.body)(x_BID, body, inner, key=key)  # its tokens are not those of the text
        written_BMD = take(y_BID, write_BM)
        memory = change_rows(part.ends_B, lambda memory: self.write(memory, written_BMD), state.memory)
        return Recurrence(body, memory, state.offset_B), take(y_BID, text_BQ)


def inner_indices(part: ChunkPart, before: int, after: int, memory: int) -> tuple[Any, ...]:
    """Return the indices that assemble an inner call, and those that read its results.

    A row of [before ; Q ; after] tokens has read tokens if its segment starts in this part, then its text, then write tokens if
    its segment ends. An inner call packs these to the left. The indices are computed with operators alone. If the part is a
    whole segment, they are NumPy arrays and reads are slices.

    source_BI  for each inner token, its index in [before ; Q ; after]
    text_BQ    the inner indices of the text
    write_BM   the inner indices of the write tokens
    """
    slots = part.valid_BQ.shape[1]
    size = before + slots + after
    lead_B1, length_B1 = (part.starts_B * before)[:, None], part.length_B[:, None]
    end_B1 = lead_B1 + length_B1
    index_I = np.arange(size)
    source_BI = index_I + before - lead_B1 + (index_I >= end_B1) * (slots - length_B1)
    return source_BI.clip(0, size - 1), lead_B1 + np.arange(slots), (end_B1 + np.arange(memory)).clip(0, size - 1)
