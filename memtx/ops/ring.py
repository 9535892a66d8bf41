"""Softmax attention in a text that is divided over devices: ring attention (Liu et al. 2023, arXiv 2310.01889).

Each device has the queries of its piece. In turn j it reads the keys of the piece j before its own, and it merges the softmax
sums of all turns. Its own positions count from the start of its piece, so positions are known at compile time in every turn,
and no turn is spent on keys beyond the window. Other keys, of states, are on every device.

The backward pass fetches the keys of each turn again. A device therefore keeps the keys of its own piece only, and the scores of
one turn, T/C x T/C, exist at a time. To this end the keys come straight from their device, not from neighbour to neighbour.

C devices; other letters as in ops/attention.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from memtx.ops.attention import MASKED, Sums, View, combine, merged, read
from memtx.ops.context import AXIS, PIECES, WHOLE, earlier, on_pieces
from memtx.ops.skip import skip_unless

QUERIES = ("q_BTNH", "position_BT", "chunk_BT")
KEYS = ("k_BSKH", "v_BSKH", "key_position_BS", "valid_BS", "key_chunk_BS")
NOTHING = (0.0, 0.0, MASKED)  # the sums over no key


def fits(views: Sequence[View]) -> bool:
    """Return whether `attend` can compute this attention of divided queries."""
    return not any(view.bias or view.future for view in views)


def attend(views: Sequence[View]) -> Array:
    """Return y_BTNH in float32, as `ops.attention.attend` defines it."""
    arrays = [{name: jnp.asarray(a) for name in QUERIES + KEYS if (a := getattr(view, name)) is not None} for view in views]
    own = [view.lead == 0 and view.k_BSKH.shape[1] == view.q_BTNH.shape[1] for view in views]  # the keys of the queries' tokens
    specs = [
        {name: PIECES if name in QUERIES or is_own else WHOLE for name in given}
        for given, is_own in zip(arrays, own, strict=True)
    ]

    def here(pieces: list[dict[str, Array]]) -> Array:
        reads = [
            each
            for view, piece, is_own in zip(views, pieces, own, strict=True)
            for each in (turns if is_own else whole)(dataclasses.replace(view, **piece))
        ]
        return combine([reduce(lambda sums, each: merged([sums, each]), reads)])

    return on_pieces(here, (specs,), PIECES, arrays)


def turns(view: View) -> Iterator[Sums]:
    """Yield the softmax sums over the keys of each piece up to this device's own."""
    time = view.q_BTNH.shape[1]
    keys = {name: a for name in KEYS if (a := getattr(view, name)) is not None}
    at_1T = np.arange(time)[None]
    count = lax.axis_size(AXIS)
    if view.window is not None:
        count = min(count, 1 - (1 - view.window) // time)
    for turn in range(count):

        def work(q_BTNH, keys, turn=turn):
            fetched = earlier(keys, turn) | {"key_position_BS": at_1T - turn * time}
            seen = dataclasses.replace(view, q_BTNH=q_BTNH, position_BT=at_1T, **fetched)
            return skip_unless(lax.axis_index(AXIS) >= turn, lambda: read(seen), NOTHING)

        yield jax.checkpoint(work)(view.q_BTNH, keys)


def whole(view: View) -> Iterator[Sums]:
    """Yield the softmax sums over keys that every device has. They are skipped if the first query sees none."""
    seen_BS = jnp.ones((), bool) if view.valid_BS is None else view.valid_BS
    if view.window is not None:
        seen_BS = seen_BS & (view.position_BT[:, :1] - view.key_position_BS < view.window)

    def work(q_BTNH, k_BSKH, v_BSKH):
        return read(dataclasses.replace(view, q_BTNH=q_BTNH, k_BSKH=k_BSKH, v_BSKH=v_BSKH))

    yield skip_unless(seen_BS.any(), jax.checkpoint(work), NOTHING, view.q_BTNH, view.k_BSKH, view.v_BSKH)
