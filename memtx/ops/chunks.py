"""A step on each chunk of a call, wherever the call is cut: what a mechanism with chunks of its own is made with.

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
    """Where the slots of a block stand in each row's chunk (see ops.Grid)."""

    valid_BQ: Array
    slot_BQ: Array
    begins_B: Array
    complete_B: Array


def in_chunks(size: int, step: Callable, tokens_BT, state, offset_B: Array, seg: Segment) -> tuple[Array, Any]:
    """`step(state, tokens_BQ, place) -> (state, y_BQ)` on each chunk of a call, from where each row's own begin: y_BT, state.

    place is None where every row has a whole chunk. tokens_BT: a tree of [B, T, ...].
    """
    any_cut = partial(cut_chunks, size, step)
    if seg.position_BT.shape[1] % size or not wants_only("loss"):  # what else is emitted has one shape only
        return any_cut(tokens_BT, state, offset_B, seg)
    # Training at T = a multiple of the chunk meets whole chunks only. The other branch is recomputed in its backward pass:
    # one that is not taken would fill its residuals with zeros.
    whole = (offset_B == 0).all() & seg.mask_BT.all()
    branches = losses_summed(partial(whole_chunks, size, step)), jax.checkpoint(losses_summed(any_cut))
    out, losses = lax.cond(whole, *branches, tokens_BT, state, offset_B, seg)
    emit_all(losses)
    return out


def losses_summed(f: Callable) -> Callable:
    """`g(*args) -> (f(*args), {name: (the sum of the losses emitted,)})`: the same shapes from any number of chunks."""
    tapped = collect(f)

    def g(*args):
        out, aux = tapped(*args)
        return out, {name: (sum(jnp.sum(value) for value in values),) for name, values in aux.items()}

    return g


def whole_chunks(size: int, step: Callable, tokens_BT, state, offset_B: Array, seg: Segment) -> tuple[Array, Any]:
    """What `cut_chunks` gives when every row begins a chunk, is full and ends one."""

    def blocks(a_BT):
        return a_BT.reshape(a_BT.shape[0], -1, size, *a_BT.shape[2:]).swapaxes(0, 1)

    state, y_KBQ = scan(lambda state, tokens_BQ: step(state, tokens_BQ, None), state, jax.tree.map(blocks, tokens_BT))
    return y_KBQ.swapaxes(0, 1).reshape(*seg.position_BT.shape, *y_KBQ.shape[3:]), state


def cut_chunks(size: int, step: Callable, tokens_BT, state, offset_B: Array, seg: Segment) -> tuple[Array, Any]:
    grid = Grid(seg.mask_BT, offset_B, size)

    def work(state, block):
        return step(state, *block)

    places = Place(grid.valid_KBQ, grid.slot_KBQ, grid.start_KB, grid.complete_KB)
    blocks = jax.tree.map(grid.pack, tokens_BT), places
    state, y_KBQ = scan(lambda s, block: skip_if_empty(block[1].valid_BQ, work, s, block), state, blocks)
    return grid.unpack(y_KBQ), state
