"""Pytrees in checkpoints: one folder per leaf, named by the leaf's dotted path ("stacks.0.ring").

Only names, shapes and dtypes are compared. A tuple and a list are therefore the same, and so are `()` and a missing key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from memtx.errors import UserError, listed


def tree_handler() -> ocp.PyTreeCheckpointHandler:
    """Return Orbax's handler of pytrees, without OCDBT, which would pack all leaves into shared files."""
    return ocp.PyTreeCheckpointHandler(use_ocdbt=False)


def named_leaves(tree) -> dict[str, Any]:
    """Return the leaves by dotted path. Raises UserError if two leaves share a name, or a leaf is empty (Orbax refuses it)."""
    named = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "value"
        if name in named or math.prod(leaf.shape) == 0:
            why = "is the name of two leaves" if name in named else "has no elements; use () instead"
            raise UserError(f"{name!r} in a tree to checkpoint {why}")
        named[name] = leaf
    return named


def spec(leaf) -> str:
    """Return dtype and shape as text, such as "float32[2,3]"."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def elements(spec: str) -> int:
    """Return the number of elements of an array from its `spec`."""
    return math.prod(map(int, re.findall(r"\d+", spec.partition("[")[2])))


def mismatches(item: str, tree, saved: Mapping[str, str]) -> list[str]:
    """Describe the leaves that only one tree has, and leaves whose shape or dtype differs, a few of each."""
    specs = {name: spec(leaf) for name, leaf in named_leaves(tree).items()}
    lacks_here = [f"{item}.{name} {saved[name]}" for name in sorted(saved.keys() - specs.keys())]
    lacks_there = [f"{item}.{name} {specs[name]}" for name in sorted(specs.keys() - saved.keys())]
    differs = [n for n in sorted(specs.keys() & saved.keys()) if specs[n] != saved[n]]
    return (
        [f"only in the checkpoint: {listed(lacks_here, 3)}"] * bool(lacks_here)
        + [f"only in the program: {listed(lacks_there, 3)}"] * bool(lacks_there)
        + [f"{item}.{n} is {specs[n]} in the program, {saved[n]} in the checkpoint" for n in differs]
    )


def read_tree(path: Path, tree):
    """Read the arrays of one item with the structure, shapes and shardings of `tree`.

    If the array in the checkpoint is larger, it is cut. If it is smaller, zeros fill the rest.
    """
    named = named_leaves(tree)
    if not named:
        return tree
    args = ocp.args.PyTreeRestore(
        item={name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in named.items()},
        restore_args={
            name: ocp.ArrayRestoreArgs(sharding=_sharding(leaf), global_shape=leaf.shape, dtype=leaf.dtype, strict=False)
            for name, leaf in named.items()
        },
    )
    with ocp.Checkpointer(tree_handler()) as reader:
        arrays = reader.restore(path, args=args)
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in named])


def _sharding(leaf):
    return getattr(leaf, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
