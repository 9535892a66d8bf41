"""Modules of the `model` group of a config: the stacks, the mechanism around them, and their shared parameters."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import jax
from flax import nnx
from jax import Array

from memtx.config import Model
from memtx.core import Body, Dims
from memtx.memory import MEMORIES
from memtx.models import patterns
from memtx.models.block import Block, Branch
from memtx.models.readers import KIND, Reader, Written
from memtx.models.stack import Sequence, Stack
from memtx.nn.mlp import MLP


def build_body(model: Model, dims: Dims, key: Array) -> Body:
    """Build all layers between embedding and head: stacks of blocks, inside the mechanism `model.body` if it is set."""
    around = MEMORIES[model.body] if model.body else None
    outer, *keys = jax.random.split(key, 1 + len(model.stacks))
    stacks, read, later = [], defaultdict(set), defaultdict(set)
    for name, writer, reader in patterns.readings(model.stacks):
        read[writer].add(name)
        if reader[0] > writer[0]:
            later[writer[0]].add(f"{KIND}/{name}")
    for s, ((pattern, groups), stack_key) in enumerate(zip(model.stacks, keys, strict=True)):
        makes = [_block_maker(model, dims, entry, read[s, p]) for p, entry in enumerate(pattern)]
        if around is not None and around.wrap_layer is not None:
            makes = [partial(_wrap, partial(around.wrap_layer, model.memory[model.body], dims), make) for make in makes]
        how = {"scan": model.scan, "remat": model.remat, "handed": sorted(later[s])}
        before = sum(len(pattern) * groups for pattern, groups in model.stacks[:s])
        stacks.append(Stack(makes, groups, stack_key, **how, first=before))
    layers = Sequence(stacks)
    return layers if around is None else around(model.memory[model.body], dims, outer, layers)


def _block_maker(model: Model, dims: Dims, entry: str, read: set[str]):
    """Return a function that builds a block from a key. read: the mechanisms whose memory other blocks read."""
    return partial(Block, model, dims, [_branch_maker(model, dims, branch, read) for branch in patterns.parse(entry)])


def _branch_maker(model: Model, dims: Dims, branch: patterns.Branch, read: set[str]):
    """Return a function that builds a branch from a key."""
    mlp, makes = partial(MLP, ff_dim=model.ff_dim, activation=model.activation, bias=model.bias), []
    for i, name in enumerate(branch.names):
        make = mlp if name == patterns.MLP else partial(MEMORIES[name], model.memory[name])
        if i in branch.readers or name in read:
            make = partial(Reader if i in branch.readers else Written, name, make)
        makes.append(make)
    return partial(Branch, model, dims, makes, branch.gated)


def _wrap(wrap, make, key: Array):
    for_wrap, for_layer = jax.random.split(key)
    return wrap(for_wrap, make(for_layer))


def build_shared(model: Model, dims: Dims, key: Array) -> nnx.Dict:
    """Build the parameters that several layers of a mechanism share (`Memory.shared`), by mechanism."""
    found = {}
    for i, (name, settings) in enumerate(model.memory.items()):
        if parameters := MEMORIES[name].shared(settings, dims, jax.random.fold_in(key, i)):
            found[name] = nnx.Dict(parameters)
    return nnx.Dict(found)


def collect_shared(parameters: nnx.Dict) -> dict[str, Array]:
    """Return shared parameters by their names in `seg.shared`: "mechanism/name"."""
    return {f"{name}/{key}": value[...] for name, group in parameters.items() for key, value in group.items()}
