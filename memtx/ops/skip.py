"""Work that a program skips at run time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def skip_unless(wanted: Array, work: Callable, nothing: Any, *args) -> Any:
    """Return `work(*args)`, or results of the same shapes filled with `nothing` if the scalar `wanted` is false.

    nothing: a number, or a tree of numbers whose structure begins that of the results. `work` must not emit.
    """

    def skip(*args):
        shapes = jax.eval_shape(work, *args)
        return jax.tree.map(lambda n, part: jax.tree.map(lambda a: jnp.full(a.shape, n, a.dtype), part), nothing, shapes)

    return lax.cond(wanted, work, skip, *args)
