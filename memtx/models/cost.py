"""The cost of a call, counted from its program: the floating-point operations of its matrix products.

A product of [m, k] with [k, n] counts 2 m k n. A loop body counts once per iteration, or once if the number of iterations is
not static. Only the most expensive branch of a condition counts. Element-wise operations, a few per cent, do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
from jax.extend import core

from memtx.models.lm import LM


def flops(f: Callable, *args) -> int:
    """Return the FLOPs of one call of f. Nothing is computed, so arguments may be ShapeDtypeStructs."""
    return flops_of(jax.make_jaxpr(f)(*args).jaxpr)


def flops_per_token(lm: LM, time: int = 128) -> int:
    """Return the FLOPs of the forward pass per token, in a call of `time` tokens of one stream."""
    token_BT = jax.ShapeDtypeStruct((1, time), jnp.int32)
    return flops(lm, lm.abstract_params, token_BT, jax.eval_shape(lambda: lm.init_state(1))) // time


def flops_of(jaxpr: core.Jaxpr) -> int:
    """Return the FLOPs of a program."""
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * prod(equation.outvars[0].aval.shape) * prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        out_channels = kernel[params["dimension_numbers"].rhs_spec[0]]
        return 2 * prod(equation.outvars[0].aval.shape) * prod(kernel) // out_channels
    inner = [flops_of(jaxpr) for jaxpr in inner_programs(params)]
    if name == "cond":
        return max(inner)
    return params.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def inner_programs(params: dict) -> list[core.Jaxpr]:
    """Return the programs inside an equation, under any parameter name."""
    found = []
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, core.ClosedJaxpr):
                found.append(part.jaxpr)
            elif isinstance(part, core.Jaxpr):
                found.append(part)
    return found
