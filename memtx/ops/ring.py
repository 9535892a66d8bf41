"""Softmax attention in a text that is divided over devices: ring attention (Liu et al. 2023, arXiv 2310.01889).

Each device has the queries of its piece. In turn j it reads the keys of the piece j before its own, and it adds up the softmax
sums of all turns. Positions relative to the device's first query are known at compile time in every turn, and keys beyond
the window are not sent. Other keys, such as those of a state, are on every device.

The backward pass fetches and reads the keys of each turn again. A device therefore saves the keys of its own piece only, and
the scores of one turn, T/C x T/C, exist at a time. This is why keys come straight from their device. A ring that passes them
from neighbour to neighbour would use fewer links, but each device would have to save the keys of all turns.

C devices; other letters as in ops/attention.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial, reduce

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
    own = [view.lead == 0 and view.k_BSKH.shape[1] == view.q_BTNH.shape[1] for view in views]  # the keys of the queries' tokens
    arrays = [_arrays(view, QUERIES + KEYS) for view in views]
    specs = [
        {name: PIECES if is_own or name in QUERIES else WHOLE for name in given}
        for is_own, given in zip(own, arrays, strict=True)
    ]

    def here(pieces: list[dict[str, Array]]) -> Array:
        sums = []
        for view, is_own, piece in zip(views, own, pieces, strict=True):
            view = dataclasses.replace(view, **piece)
            sums += read_pieces(view) if is_own else [read_whole(view)]
        return combine([reduce(lambda one, other: merged([one, other]), sums)])

    return on_pieces(here, (specs,), PIECES, arrays)


def read_pieces(view: View) -> list[Sums]:
    """Return the softmax sums over the keys of this device's piece, and of each earlier piece within the window."""
    time, devices = view.q_BTNH.shape[1], lax.axis_size(AXIS)
    window = time * devices if view.window is None else view.window
    at_1T = np.arange(time)[None]

    def turn(j: int, q_BTNH: Array, keys: dict[str, Array]) -> Sums:
        first = max(0, j * time - window + 1)  # the first key that the first query sees
        fetched = earlier({name: a[:, first:] for name, a in keys.items()}, j)
        at = {"position_BT": at_1T, "key_position_BS": at_1T[:, first:] - j * time}
        seen = dataclasses.replace(view, q_BTNH=q_BTNH, **fetched | at)
        return skip_unless(lax.axis_index(AXIS) >= j, lambda: read(seen), NOTHING)

    turns = min(devices, 1 - (1 - window) // time)
    return [jax.checkpoint(partial(turn, j))(view.q_BTNH, _arrays(view, KEYS)) for j in range(turns)]


def read_whole(view: View) -> Sums:
    """Return the softmax sums over keys that every device has. The reading is skipped if the first query sees none."""
    seen_BS = jnp.ones((), bool) if view.valid_BS is None else view.valid_BS
    if view.window is not None:
        seen_BS = seen_BS & (view.position_BT[:, :1] - view.key_position_BS < view.window)

    def work(q_BTNH: Array, k_BSKH: Array, v_BSKH: Array) -> Sums:
        return read(dataclasses.replace(view, q_BTNH=q_BTNH, k_BSKH=k_BSKH, v_BSKH=v_BSKH))

    return skip_unless(seen_BS.any(), jax.checkpoint(work), NOTHING, view.q_BTNH, view.k_BSKH, view.v_BSKH)


def _arrays(view: View, names: Sequence[str]) -> dict[str, Array]:
    return {name: jnp.asarray(a) for name in names if (a := getattr(view, name)) is not None}
