"""The memory of a program, estimated from its operations without compiling it.

A compiler keeps the result of a matrix product, a loop, a gather or a reduction in memory until its last use. It computes
element-wise operations and changes of shape inside of the operations that use them, so their operands live until then. The
most memory is needed at the operation with the most bytes of living results. A loop needs memory for all of its results, and
for one turn of its body.

A TPU stores two axes of an array in tiles of 8 x 128 numbers of 32 bits, and pads them to full tiles. The compiler chooses the
two axes. Arguments of a program have the best ones. Inside of it the products decide, so the estimate is a range: from the
padding of the best two axes to that of the last two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from itertools import permutations
from math import prod

import numpy as np
from jax.extend import core

from memtx.models.cost import inner_programs

FUSED = {  # operations without results in memory
    *("add", "add_any", "sub", "mul", "div", "rem", "neg", "abs", "sign", "max", "min", "pow", "integer_pow", "square", "sqrt"),
    *("rsqrt", "cbrt", "exp", "exp2", "expm1", "log", "log1p", "tanh", "logistic", "sin", "cos", "erf", "erfc", "erf_inv"),
    *("eq", "ne", "lt", "le", "gt", "ge", "and", "or", "xor", "not", "is_finite", "floor", "ceil", "round", "clamp"),
    *("select_n", "convert_element_type", "bitcast_convert_type", "reduce_precision", "shift_left", "shift_right_logical"),
    *("broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "rev", "pad", "concatenate", "split", "iota"),
    *("slice", "dynamic_slice", "cumsum", "copy", "copy_p", "name", "stop_gradient", "optimization_barrier"),
    *("sharding_constraint", "reshard", "psum", "psum_invariant", "pmean", "pvary"),
    *("random_bits", "random_wrap", "random_unwrap", "random_seed", "random_fold_in", "threefry2x32"),
}
LOOPS = {"scan", "while"}
KERNELS = {"pallas_call"}
CALLS = {  # their results are those of the programs in them
    *("cond", "jit", "pjit", "remat", "remat2", "checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call", "shard_map"),
}
LANES, SUBLANES = 128, 8  # of a tile of 32-bit numbers

Share = Callable[[tuple[int, ...]], float]  # the share of an array with this shape that one device has


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of one device beyond the arguments of a program, with the best and with the given order of axes."""

    least: int
    most: int


def footprint(jaxpr: core.Jaxpr, share: Share = lambda shape: 1.0, *, tiles: bool = True) -> Footprint:
    """Estimate the most memory that a program needs at once, beyond its arguments.

    share: the share of an array that one device has, by its shape. By default all of it. tiles: whether the device is a TPU.
    """
    ways = (in_best_tiles, in_last_tiles) if tiles else (plain, plain)
    least, most = (_Program(share, stored).peak(jaxpr) for stored in ways)
    return Footprint(round(least), round(most))


def plain(shape: tuple[int, ...], item: int) -> int:
    """Return the bytes of an array without padding. item: bytes of a number."""
    return prod(shape) * item


@cache
def in_best_tiles(shape: tuple[int, ...], item: int) -> int:
    """Return the bytes of an array on a TPU, with the two axes in tiles that need the least padding."""
    if len(shape) < 2 or not prod(shape):
        return plain(shape, item)
    return min(_in_tiles(shape, item, rows, columns) for rows, columns in permutations(range(len(shape)), 2))


def in_last_tiles(shape: tuple[int, ...], item: int) -> int:
    """Return the bytes of an array on a TPU, with the last two axes in tiles."""
    return plain(shape, item) if len(shape) < 2 or not prod(shape) else _in_tiles(shape, item, -2, -1)


def _in_tiles(shape: tuple[int, ...], item: int, rows: int, columns: int) -> int:
    sublanes = SUBLANES * max(4 // item, 1)
    tiles = -(-shape[rows] // sublanes) * -(-shape[columns] // LANES)
    return prod(shape) // (shape[rows] * shape[columns]) * tiles * sublanes * LANES * item


@dataclasses.dataclass(frozen=True)
class _Program:
    share: Share
    stored: Callable[[tuple[int, ...], int], int]

    def peak(self, jaxpr: core.Jaxpr, *, placed: bool = False) -> float:
        """Return the most bytes of living results. placed: the results of the program have memory elsewhere."""
        size, last = self._lifetimes(jaxpr, placed)
        ends: dict[int, float] = {}
        for result, index in last.items():
            ends[index] = ends.get(index, 0) + size[result]
        living = peak = 0.0
        for index, equation in enumerate(jaxpr.eqns):
            name, own = equation.primitive.name, sum(size.get(result, 0) for result in equation.outvars)
            inner = [] if name in KERNELS | FUSED else inner_programs(equation.params)
            within = max((self.peak(program, placed=name in LOOPS) for program in inner), default=0)
            peak = max(peak, living + (max(own, within) if name in CALLS else own + within))
            living += own - ends.get(index, 0)
        return peak

    def _lifetimes(self, jaxpr: core.Jaxpr, placed: bool) -> tuple[dict, dict]:
        """Return the bytes of each result in memory, and the index of the operation that uses it last."""
        roots: dict = {}  # of each variable: the results in memory from which it is computed
        size, last = {}, {}
        given = {result for result in jaxpr.outvars if not isinstance(result, core.Literal)}
        for index, equation in enumerate(jaxpr.eqns):
            operands = [operand for operand in equation.invars if not isinstance(operand, core.Literal)]
            used = set().union(*(roots.get(operand, ()) for operand in operands))
            if equation.primitive.name in FUSED:
                roots |= dict.fromkeys(equation.outvars, used)
                continue
            last |= dict.fromkeys(used, index)
            for result in equation.outvars:
                roots[result], last[result] = {result}, index
                size[result] = 0 if placed and result in given else self._bytes(result.aval)
        for result in given:
            last |= dict.fromkeys(roots.get(result, ()), len(jaxpr.eqns))
        return size, last

    def _bytes(self, aval) -> float:
        shape = getattr(aval, "shape", ())
        try:
            item = np.dtype(aval.dtype).itemsize
        except (AttributeError, TypeError):  # random keys
            item = 8
        return self.stored(shape, item) * self.share(shape)
