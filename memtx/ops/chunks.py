"""Steps on the chunks of a call, however a text is cut into calls. Mechanisms with chunks are built on `in_chunks`.

B stream, T time, K blocks, Q slots in a block.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from memtx.core import Segment, collect, emit_all, pytree, scan, wants_only
from memtx.ops.grid import Grid, skip_if_empty


@pytree
class Place:
    """The position of one block in each row's chunk (see ops.Grid).

    valid_BQ    whether a slot has a token
    slot_BQ     the token's index in its chunk
    begins_B    whether the chunk starts in this block
    complete_B  whether the chunk ends in this block
    """

    valid_BQ: Array
    slot_BQ: Array
    begins_B: Array
    complete_B: Array


def in_chunks(size: int, step: Callable, tokens_BT, state, offset_B: Array, seg: Segment) -> tuple[Array, Any]:
    """Call `step(state, tokens_BQ, place) -> (state, y_BQ)` on each chunk of a call, and return y_BT and the state.

    place is None if every row has a whole chunk. tokens_BT: a tree of [B, T, ...]. offset_B: how many tokens of each row's
    first chunk came in earlier calls.
    """
    any_cut = partial(cut_chunks, size, step)
    if seg.position_BT.shape[1] % size or not wants_only("loss"):  # other emissions need the same shape from both branches
        return any_cut(tokens_BT, state, offset_B, seg)
    # If the chunk size divides T, training meets whole chunks only. The backward pass recomputes the other branch: when it is
    # not taken, saved residuals would be filled with zeros.
    whole = (offset_B == 0).all() & seg.mask_BT.all()
    branches = losses_summed(partial(whole_chunks, size, step)), jax.checkpoint(losses_summed(any_cut))
    out, losses = lax.cond(whole, *branches, tokens_BT, state, offset_B, seg)
    emit_all(losses)
    return out


def losses_summed(f: Callable) -> Callable:
    """Return `g(*args) -> (f(*args), {name: (sum of the emitted losses,)})`.

    The shapes of its results do not depend on the number of chunks.
    """
    tapped = collect(f)

    def g(*args):
        out, aux = tapped(*args)
        return out, {name: (sum(jnp.sum(value) for value in values),) for name, values in aux.items()}

    return g


def whole_chunks(size: int, step: Callable, tokens_BT, state, offset_B: Array, seg: Segment) -> tuple[Array, Any]:
    """Compute `cut_chunks` for calls in which every row starts a chunk, has no padding and ends a chunk."""

    def blocks(a_BT):
        return a_BT.reshape(a_BT.shape[0], -1, size, *a_BT.shape[2:]).swapaxes(0, 1)

    state, y_KBQ = scan(lambda state, tokens_BQ: step(state, tokens_BQ, None), state, jax.tree.map(blocks, tokens_BT))
    return y_KBQ.swapaxes(0, 1).reshape(*seg.position_BT.shape, *y_KBQ.shape[3:]), state


def cut_chunks(size: int, step: Callable, tokens_BT, state, offset_B: Array, seg: Segment) -> tuple[Array, Any]:
    """Call the step on each block of a Grid, for calls that start or end anywhere in a chunk."""
    grid = Grid(seg.mask_BT, offset_B, size)

    def work(state, block):
        return step(state, *block)

    places = Place(grid.valid_KBQ, grid.slot_KBQ, grid.start_KB, grid.complete_KB)
    blocks = jax.tree.map(grid.pack, tokens_BT), places
    state, y_KBQ = scan(lambda s, block: skip_if_empty(block[1].valid_BQ, work, s, block), state, blocks)
    return grid.unpack(y_KBQ), state
