"""Functions of many queries that each device runs on its own queries, in a program that XLA's partitioner divides.

Without this, the partitioner gathers all rows on every device for a selection. For a loop that reads rows of a table or adds to
them, it gathers or sums the whole table in every iteration.
"""

from collections.abc import Callable
from functools import wraps

import jax
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec


def per_device(rule: str, *, static: tuple[int, ...] = ()) -> Callable:
    """Return a decorator that runs a function on each device's queries.

    rule: the axes of arguments and results, as in "m d, n r -> n d". Arrays whose first axis is n are divided along it, like
    the first such argument. All others are replicated on every device. A result without n is summed over devices.

    static: the indices of the static arguments, which follow the arrays.

    `vmap` turns into a loop. A gradient needs a custom rule.
    """
    arguments, results = (side.split(", ") for side in rule.split(" -> "))
    whole_axes = dict.fromkeys(axis for axis in rule if axis.isalpha() and axis != "n")

    def decorate(f):
        def partition(*args):
            *constants, mesh, shapes, made = args
            spec = next(a.sharding.spec for a, axes in zip(shapes, arguments, strict=True) if axes[0] == "n")
            rows = spec[0] if spec else None  # one or more axes of the mesh
            by_row, whole = (NamedSharding(mesh, PartitionSpec(axis, None)) for axis in (rows, None))
            wanted, given = (tuple(by_row if axes[0] == "n" else whole for axes in side) for side in (arguments, results))

            def here(*arrays):
                ys, tree = jax.tree.flatten(f(*arrays, *constants))
                add = lambda y, axes: y if axes[0] == "n" or rows is None else lax.psum(y, rows)  # noqa: E731
                return jax.tree.unflatten(tree, map(add, ys, results))

            return mesh, here, jax.tree.unflatten(jax.tree.structure(made), given), wanted

        partitioned = custom_partitioning(f, static_argnums=static)
        partitioned.def_partition(partition=partition, sharding_rule=rule, need_replication_factors=tuple(whole_axes))

        @wraps(f)
        def call(*args):
            count = len(arguments)
            return sequential_vmap(lambda *arrays: partitioned(*arrays, *args[count:]))(*args[:count])

        return call

    return decorate
