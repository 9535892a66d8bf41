"""Functions of many queries that each device of a mesh runs on its own queries.

Without this, XLA's partitioner gathers all rows on every device for a selection. For a loop that reads rows of a table or adds
to them, it gathers or sums the whole table in every iteration.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P


def mesh_here(*arrays: Any) -> AbstractMesh | None:
    """Return the mesh on which a traced function runs, from the types of its arguments, or None without a mesh."""
    meshes = (jax.typeof(array).sharding.mesh for array in jax.tree.leaves(arrays))
    return next((mesh for mesh in meshes if not mesh.empty), None)


def mesh_of(*arrays: Any) -> AbstractMesh | None:
    """Return the mesh over whose devices the rows of the arguments are divided. None if these are the rows of one device."""
    mesh = mesh_here(*arrays)
    return None if mesh is None or "data" in mesh.manual_axes else mesh


def per_device(rule: str) -> Callable:
    """Return a decorator that runs a function on each device's queries.

    rule: the axes of arguments and results, as in "m d, n r -> n d". Arrays whose first axis is n are divided along it over the
    `data` axis of the mesh. All others are replicated on every device. A result without n is summed over devices. Further
    arguments are static. If `data` does not divide n, XLA divides the function as it likes.
    """
    arguments, results = ([axes[0] == "n" for axes in side.split(", ")] for side in rule.split(" -> "))
    specs, made = (tuple(P("data") if by_row else P() for by_row in side) for side in (arguments, results))
    out_specs = made if len(results) > 1 else next(iter(made))

    def decorate(f):
        @wraps(f)
        def call(*args):
            arrays, static = tuple(map(jnp.asarray, args[: len(arguments)])), args[len(arguments) :]
            mesh, count = mesh_of(arrays), len(arrays[arguments.index(True)])
            if mesh is None or "data" not in mesh.shape or count % mesh.shape["data"]:
                return f(*arrays, *static)

            def here(*arrays):
                ys, tree = jax.tree.flatten(f(*arrays, *static))
                return jax.tree.unflatten(tree, [y if row else lax.psum(y, "data") for y, row in zip(ys, results, strict=True)])

            return jax.shard_map(here, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)(*arrays)

        return call

    return decorate
