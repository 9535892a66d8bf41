"""A train step on devices that are not here, estimated in seconds: its memory, its work, its transfers and its time.

    found = estimate(config, "v5e:4x4", vocab_size=32_000)
    found.peak, found.chip.memory         # bytes per device
    found.seconds                         # of a step, from good to poor use of the chip

The sizes of the arguments are exact. memtx.runs.footprint estimates the rest of the memory from the program of one device.
`memtx.runs.compiled` asks the compiler instead, which takes minutes. Nothing runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax

from memtx.config import Config, Mesh
from memtx.errors import UserError
from memtx.models import patterns
from memtx.models.cost import flops_of
from memtx.models.lm import LM, build
from memtx.runs.chips import MACHINE, Chip, parse_topology
from memtx.runs.compiled import abstract_step
from memtx.runs.configure import configure
from memtx.runs.footprint import Share, footprint, in_best_tiles, plain
from memtx.runs.plan import get_key, set_key
from memtx.sharding import Absent, Layout

USE = (0.6, 0.2)  # of the FLOPs of a chip: by a good program, and by a poor one
ARGUMENTS = ("params", "optimiser", "state", "batch")
ROOM = 0.95  # the share of a chip's memory that a program can use
LARGEST = 2**30  # the largest value of a key that `fit` tries
STEPS = 16  # `fit` finds the largest value to one part in STEPS


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A train step on one of `devices` chips.

    params, optimiser, state, batch: bytes of the arguments. temporary: bytes of gradients, of results that the backward pass
    needs, and of everything else. padding: the bytes that a TPU may add to them, half of which are in `peak`. flops: of the
    matrix products. moved: the least bytes between devices, by kind.
    """

    chip: Chip
    devices: int
    params: int
    optimiser: int
    state: int
    batch: int
    temporary: int
    padding: int
    flops: int
    moved: dict[str, int]

    @property
    def arguments(self) -> int:
        """Return the bytes of the arguments."""
        return self.params + self.optimiser + self.state + self.batch

    @property
    def peak(self) -> int:
        """Return the most bytes in use at a time."""
        return self.arguments + self.temporary + self.padding // 2

    @property
    def fits(self) -> bool:
        """Return whether the step fits into the memory of the chip."""
        return self.peak <= ROOM * self.chip.memory

    @property
    def seconds(self) -> tuple[float, float]:
        """Return the least and the most time of a step that one can expect."""
        far = self.chip.network and self.devices > MACHINE
        moving = sum(self.moved.values()) / (self.chip.network if far else self.chip.link)
        reading = 2 * self.arguments / self.chip.bandwidth  # the optimiser reads and writes them
        return tuple(max(self.flops / (use * self.chip.flops), reading) + moving for use in USE)  # pyright: ignore


def estimate(config: Config, topology: str, *, vocab_size: int = 0) -> Estimate:
    """Estimate the train step of a language model on the chips of a topology, such as v5e:16x16 or h100x8.

    vocab_size: that of the tokenizer. Raises UserError if the model has an encoder, if texts are divided, or if the mesh or the
    batch of the config does not fit the chips.
    """
    if config.model.encoder:
        raise UserError("a model with an encoder reads sources, and its train step cannot be estimated")
    if config.mesh.context > 1:
        raise UserError("a step with mesh.context cannot be estimated; memtx.runs.compiled.compile_step compiles it")
    chip, count = parse_topology(topology)
    layout = Layout(config.mesh, devices=Absent(count, chip.platform))
    layout.check_batch("train.batch / train.accumulate", config.train.batch // config.train.accumulate)
    lm = build(config.model, vocab_size=vocab_size)
    _, args = abstract_step(config, layout, vocab_size)
    tiles = chip.platform == "tpu"
    sizes = {name: _bytes(tree, in_best_tiles if tiles else plain) for name, tree in zip(ARGUMENTS, args, strict=False)}
    data = layout.mesh.shape["data"]
    train = dataclasses.replace(config.train, batch=config.train.batch // data)
    alone = dataclasses.replace(config, train=train, mesh=Mesh(data=1))
    step, args = abstract_step(alone, Layout(alone.mesh, devices=Absent(1, chip.platform)), vocab_size)
    program = jax.make_jaxpr(step)(*args).jaxpr.eqns[0].params["jaxpr"].jaxpr
    found = footprint(program, _share(lm, config, layout), tiles=tiles)
    return Estimate(
        chip,
        count,
        **sizes,
        temporary=found.least,
        padding=found.most - found.least,
        flops=flops_of(program) // (count // data),
        moved=_moved(lm, config, layout),
    )


def fit(values: Mapping[str, Any], key: str, topology: str, *, vocab_size: int = 0) -> tuple[int, Estimate]:
    """Return the largest value of a dotted key with which a train step fits the topology, and its estimate.

    values: the values of a config file. A value that is one part in STEPS larger might fit too. A batch is a multiple of the
    devices of the data axis. Raises UserError if the key is not an integer, or if nothing fits.
    """
    if type(get_key(values, key)) is not int:
        raise UserError(f"{key} is not an integer, so no largest value of it can be found")

    @cache
    def of(number: int) -> Estimate | None:
        """Return the estimate if the step fits. A smaller value than the given one that the config rejects has none."""
        try:
            found = estimate(configure(set_key(dict(values), key, number)), topology, vocab_size=vocab_size)
        except UserError:
            if number >= start:
                raise
            return None
        return found if found.fits else None

    unit = _data_axis(configure(values), topology) if key == "train.batch" else 1
    start = max(get_key(values, key) // unit, 1) * unit
    low, high = 0, start
    while found := of(high):
        low, high = high, 2 * high
        if high > LARGEST or found == of(high):
            raise UserError(f"{key} does not change the memory of the step")
    while high - low > max(low // STEPS // unit, 1) * unit:
        middle = low + (high - low) // (2 * unit) * unit
        low, high = (middle, high) if of(middle) else (low, middle)
    if (found := of(low) if low else None) is None:
        raise UserError(f"the step does not fit {topology}, whatever the value of {key}")
    return low, found


def _data_axis(config: Config, topology: str) -> int:
    chip, count = parse_topology(topology)
    return Layout(config.mesh, devices=Absent(count, chip.platform)).mesh.shape["data"] * config.train.accumulate


def _bytes(tree, stored: Callable) -> int:
    """Return the bytes of arrays on one device."""
    return sum(stored(leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))


def _share(lm: LM, config: Config, layout: Layout) -> Share:
    """Return the share of an array that one device has, by its shape.

    An array with an axis that is divided over `model` in a parameter is divided too. Arrays with the shape of a parameter, or
    of one of two matrices in it, are divided like it.
    """
    model, shapes, divided = layout.mesh.shape["model"], {}, {config.model.num_heads}

    def note(leaf, sharding):
        share = math.prod(sharding.shard_shape(leaf.shape)) / math.prod(leaf.shape)
        shapes.update(dict.fromkeys((leaf.shape, (*leaf.shape[:-1], leaf.shape[-1] // 2)), share))
        for size, axis in zip(leaf.shape, sharding.spec, strict=False):
            if axis == "model":
                divided.update({size, size // 2})

    jax.tree.map(note, lm.abstract_params, layout.params(lm))
    divided.discard(config.model.width)

    def share(shape: tuple[int, ...]) -> float:
        if shape in shapes:
            return shapes[shape]
        return 1 / model if model > 1 and divided & {*shape} else 1.0

    return share


def _moved(lm: LM, config: Config, layout: Layout) -> dict[str, int]:
    """Return the least bytes between devices in a step, by kind: of gradients, weights, and the two outputs of each layer."""
    data, model = layout.mesh.shape["data"], layout.mesh.shape["model"]
    params = sum(
        math.prod(sharding.shard_shape(leaf.shape)) * (data if config.mesh.fsdp else 1)
        for leaf, sharding in zip(jax.tree.leaves(lm.abstract_params), jax.tree.leaves(layout.params(lm)), strict=True)
    )
    found = {}
    if data > 1:
        found["gradients"] = 4 * params
    if data > 1 and config.mesh.fsdp:
        found["weights"] = 2 * _item(config) * params  # for the forward and the backward pass
    if model > 1:
        tokens = config.train.batch // data * config.train.segments * config.data.segment
        layers = len(patterns.layers(config.model.stacks))
        found["outputs"] = 4 * layers * tokens * config.model.width * _item(config)
    return found


def _item(config: Config) -> int:
    return jax.numpy.dtype(config.model.dtype).itemsize
