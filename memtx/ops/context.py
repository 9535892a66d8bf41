"""Texts divided over devices: each device of the mesh axis `context` has one of the equal pieces of every call, in order.

XLA's partitioner divides the work on single tokens. Functions in `ops` that relate tokens to each other run on each device's
piece (`on_pieces`) and exchange only the data that other pieces need: keys, maps of states, or the end of the text.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from memtx.ops.per_device import mesh_here

AXIS = "context"
WHOLE, PIECES = P(), P(None, AXIS)  # arrays that each device has, and arrays [B, T, ...] that are divided


def is_divided(a_BT: Array, axis: int = 1) -> bool:
    """Return whether the devices divide the tokens of an array. If they cannot, each device has all tokens."""
    mesh = mesh_here(a_BT)
    devices = 1 if mesh is None or AXIS in mesh.manual_axes else mesh.shape.get(AXIS, 1)
    return devices > 1 and a_BT.shape[axis] % devices == 0


def on_pieces(f: Callable, in_specs: Any, out_specs: Any, *args: Any) -> Any:
    """Call f on each device's pieces of the arguments. The specs are trees of WHOLE and PIECES."""
    mesh = mesh_here(args)
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={AXIS}, check_vma=False)(*args)


def earlier(tree: Any, by: int) -> Any:
    """Return the arrays of the device `by` pieces earlier, or zeros if there is none. Only for functions on pieces."""
    if not by:
        return tree
    return lax.ppermute(tree, AXIS, [(i, i + by) for i in range(lax.axis_size(AXIS) - by)])
