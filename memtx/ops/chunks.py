"""Steps over the chunks of a call, independent of how a text is cut into calls. Mechanisms with chunks use `in_chunks`.

B stream, T time, K parts of a call, Q slots in a part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from memtx.core import Segment, State, collect, emit_all, pytree, rematerialised, scan, wanted, where_rows
from memtx.ops.grid import Grid, skip_if_empty


@pytree
class ChunkPart:
    """The part of each row's chunk that one step reads (see ops.Grid).

    valid_BQ  whether a slot has a token
    slot_BQ   the token's index in its chunk
    starts_B  whether the chunk starts in this part
    ends_B    whether the chunk ends in this part

    A ChunkPart of NumPy arrays is known at compile time. XLA then removes the masks. Indices that are computed from it with
    operators alone are NumPy arrays too, so `rows.take` and `rows.put` become slices.
    """

    valid_BQ: Array
    slot_BQ: Array
    starts_B: Array
    ends_B: Array

    @staticmethod
    def whole(batch: int, size: int) -> ChunkPart:
        """Return the part that is a whole chunk in every row, as NumPy arrays."""
        slot_BQ, all_B = np.tile(np.arange(size, dtype=np.int32), (batch, 1)), np.ones(batch, bool)
        arrays: Any = slot_BQ >= 0, slot_BQ, all_B, all_B
        return ChunkPart(*arrays)

    @property
    def length_B(self) -> Array:
        """The number of tokens in this part."""
        return self.valid_BQ.sum(1, dtype=np.int32)


def change_rows(row_B: Array, change: Callable[[State], State], state: State) -> State:
    """Return `change(state)` in the rows that are True. If no row is True, the change is skipped at run time.

    The batch is the first axis of every leaf. `change` must not emit.
    """
    return lax.cond(row_B.any(), lambda s: where_rows(row_B, change(s), s), lambda s: s, state)


def in_chunks(
    size: int, step: Callable, tokens_BT, state: State, offset_B: Array, seg: Segment, *, remat: bool = False
) -> tuple[Array, State]:
    """Call `step(state, tokens_BQ, part) -> (state, y_BQ)` on each chunk of a call, and return y_BT and the state.

    size      tokens of a chunk
    tokens_BT a tree of [B, T, ...]
    offset_B  how many tokens of each row's first chunk came in earlier calls
    remat     whether the backward pass recomputes each step
    """
    any_cut = partial(cut_chunks, size, step, remat)
    args = tokens_BT, state, offset_B, seg
    only_losses = {*wanted()} <= {"loss", "memory"}  # layers pass a memory on
    if seg.position_BT.shape[1] % size or not (only_losses or emits_only_losses(any_cut, *args)):
        return any_cut(*args)  # both branches must emit the same shapes, and those of losses are sums
    # If the chunk size divides T, training meets whole chunks only. The backward pass recomputes the other branch: when it is
    # not taken, saved residuals would be filled with zeros.
    whole = (offset_B == 0).all() & seg.mask_BT.all()
    branches = losses_summed(partial(whole_chunks, size, step, remat)), jax.checkpoint(losses_summed(any_cut))
    out, losses = lax.cond(whole, *branches, *args)
    emit_all(losses)
    return out


def emits_only_losses(f: Callable, *args) -> bool:
    """Return whether a call of f would emit losses and nothing else, although other kinds are collected."""
    emitted = jax.eval_shape(collect(f), *args)[1]
    return all(name.startswith("loss/") for name in emitted)


def losses_summed(f: Callable) -> Callable:
    """Return `g(*args) -> (f(*args), {name: (sum of the emitted losses,)})`.

    The shapes of its results do not depend on the number of chunks.
    """
    tapped = collect(f)

    def g(*args):
        out, aux = tapped(*args)
        return out, {name: (sum(jnp.sum(value) for value in values),) for name, values in aux.items()}

    return g


def whole_chunks(
    size: int, step: Callable, remat: bool, tokens_BT, state: State, offset_B: Array, seg: Segment
) -> tuple[Array, State]:
    """Compute `cut_chunks` for calls in which every row starts a chunk, has no padding and ends a chunk."""
    part = ChunkPart.whole(len(offset_B), size)

    def work(state, tokens_BQ):
        return step(state, tokens_BQ, part)

    def cut(a_BT):
        return a_BT.reshape(a_BT.shape[0], -1, size, *a_BT.shape[2:]).swapaxes(0, 1)

    state, y_KBQ = scan(rematerialised(work) if remat else work, state, jax.tree.map(cut, tokens_BT))
    return y_KBQ.swapaxes(0, 1).reshape(*seg.position_BT.shape, *y_KBQ.shape[3:]), state


def cut_chunks(
    size: int, step: Callable, remat: bool, tokens_BT, state: State, offset_B: Array, seg: Segment
) -> tuple[Array, State]:
    """Call the step on each block of a Grid, for calls that start or end anywhere in a chunk."""
    grid = Grid(seg.mask_BT, offset_B, size)

    def work(state, block) -> tuple[State, Any]:
        return step(state, *block)

    work = rematerialised(work) if remat else work
    parts = ChunkPart(grid.valid_KBQ, grid.slot_KBQ, grid.start_KB, grid.complete_KB)
    blocks = jax.tree.map(grid.pack, tokens_BT), parts
    read = collect(lambda state: scan(lambda s, block: skip_if_empty(block[1].valid_BQ, work, s, block), state, blocks))
    (state, y_KBQ), aux = read(state)
    emit_all({name: by_token(grid, name, values) for name, values in aux.items()})
    return grid.unpack(y_KBQ), state


def by_token(grid: Grid, name: str, values: tuple) -> tuple:
    """Return emitted values. Those of attribution and attention, [K, B, Q, ...], become [B, T, ...] (see nn/reads.py)."""
    return jax.tree.map(grid.unpack, values) if name.startswith(("attribution/", "attention/")) else values
