"""Tools of the contract tests. A Case is one mechanism with tiny settings. Its call is compiled once per shape.

B stream, T time, N query heads, K kv heads, H head dim, D model.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from dataclasses import dataclass
from functools import cached_property
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from memtx.config import Model
from memtx.core import Dims, Memory, Segment, batch_axes, reset, segment
from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.memory.registry import load_class
from memtx.models import patterns
from memtx.models.body import build_body, build_shared, collect_shared
from memtx.models.settings import complete_model

BATCH = 4
EXACT = 3e-5  # float32 rounding; the largest that was seen is 2.4e-5, of armt in a language model
MOVED = 1e-3  # the least change that a control must make
DIMS = Dims(width=8, num_heads=4, num_kv_heads=2, head_dim=4, position="rope", vocab_size=16)


# --- sharding over the devices that --devices sets --------------------------------------------------------------------------


@functools.cache
def mesh(data: int = 0):
    """Return a ('data', 'model') mesh of all devices, or None if there is only one."""
    devices = jax.device_count()
    data = data or min(devices, BATCH)
    return None if devices == 1 else jax.make_mesh((data, devices // data), ("data", "model"), (AxisType.Auto,) * 2)


def shard(tree, axes=0, on=None):
    """Shard a tree over `data`. axes: the batch axis of each leaf, or one int for all leaves. -1 means no batch axis."""
    on = on or mesh()
    if on is None:
        return jax.tree.map(jnp.asarray, tree)

    def leaf(a, axis):
        spec = PartitionSpec(*[None] * axis, "data") if axis >= 0 else PartitionSpec()
        return jax.device_put(a, NamedSharding(on, spec))

    return jax.tree.map(leaf, tree, axes if not isinstance(axes, int) else jax.tree.map(lambda _: axes, tree))


# --- a mechanism under test -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A mechanism under test: its class, one of its tiny settings, and sizes."""

    name: str
    cls: type
    config: object
    dims: Dims = DIMS
    label: str = ""

    @property
    def id(self) -> str:
        """The name of the case in test ids."""
        return self.name + self.label

    @cached_property
    def model(self) -> Model:
        """The smallest model with the mechanism: one block, or a body or head mechanism with one block."""
        entry = (self.cls.block or "window") if self.cls.site in ("body", "head") else self.name
        around = {self.cls.site: self.name} if self.cls.site in ("body", "head") else {}
        inner = {name: MEMORIES[name].tiny[0] for name in patterns.names([((entry,), 1)]) if name != self.name}
        sizes = {field.name: getattr(self.dims, field.name) for field in dataclasses.fields(Dims)}
        memory = {self.name: self.config, **inner}
        return complete_model(Model(stacks=(((entry,), 1),), memory=memory, ff_dim=16, **around, **sizes))

    @cached_property
    def layer(self):
        """The mechanism as a layer whose parameters are only shapes and dtypes."""
        return nnx.eval_shape(lambda: Alone(self, jax.random.key(0)))

    @cached_property
    def params(self):
        """The parameters of the mechanism."""
        with jax.ensure_compile_time_eval():  # the first test that uses it may be tracing
            init = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(Alone(self, key))))
            return shard(init(jax.random.key(0)), -1)

    @cached_property
    def axes(self):
        """The batch axes of the state."""
        return batch_axes(self.layer.init_state)

    @cached_property
    def remembers(self) -> bool:
        """Whether the mechanism has a state. A table of parameters has none."""
        return bool(jax.tree.leaves(self.axes))

    @property
    def causal(self) -> bool:
        """Whether the mechanism is causal (`Memory.causal`)."""
        return self.cls.causal

    @property
    def encoded(self) -> bool:
        """Whether the mechanism reads an encoder's output (`Memory.encoded`)."""
        return self.cls.encoded

    @property
    def keeps_x(self) -> bool:
        """Whether the state depends on x."""
        return self.remembers and not self.encoded

    def init_state(self):
        """Return the empty state."""
        return shard(self.layer.init_state(BATCH), self.axes)

    def apply(self, params, x, state, seg: Segment):
        """Reset the state and call the layer, as a model does."""
        graph, abstract = nnx.split(self.layer)
        nnx.replace_by_pure_dict(abstract, params)
        layer = nnx.merge(graph, abstract)
        given = {**source(x, seg), **seg.shared} if self.encoded else seg.shared
        return layer(x, reset(layer, state, seg.reset_B), seg.replace(token_BT=token(x), shared=given))

    @cached_property
    def jitted(self):
        """The compiled `apply`."""
        return jax.jit(self.apply)

    def call(self, x, state, seg: Segment):
        """Call the compiled mechanism with `params`, on sharded arrays."""
        return self.jitted(self.params, shard(x), state, shard(seg))

    def x(self, seed: int, time: int = 16, dtype=jnp.float32):
        """Return a random input for the mechanism's site, a pytree of [B, T, ...]."""
        rng = np.random.default_rng(seed)
        dims = self.dims
        if self.cls.site == "attention":
            heads = (dims.num_heads, dims.num_kv_heads, dims.num_kv_heads)
            return tuple(jnp.asarray(rng.normal(size=(BATCH, time, n, dims.head_dim)), dtype) for n in heads)
        x = jnp.asarray(rng.normal(size=(BATCH, time, dims.width)), dtype)
        return (x, jnp.asarray(rng.normal(size=(BATCH, time, dims.vocab_size)), dtype)) if self.cls.site == "head" else x

    def run(self, x, cuts, state=None, start: int = 0, between=lambda state: state):
        """Feed x[:, start:] in calls of `cuts` tokens. Returns y of all calls and the final state.

        between: a function that changes the state before each call.
        """
        state, outs = self.init_state() if state is None else state, []
        x = jax.tree.map(np.asarray, x)  # each slice of a JAX array is a program
        for time in cuts:
            y, state = self.call(cut(x, start, time), between(state), at(start, time))
            outs.append(np.asarray(y))
            start += time
        return np.concatenate(outs, 1), state

    def warm(self, time: int = 7):
        """Return the state after one call in which each row has a different number of tokens."""
        return self.call(self.x(99, time), self.init_state(), at(0, time, [7, 4, 6, 5]))[1]


class Alone(nnx.Module):
    """The mechanism as a layer with its shared parameters, as a model uses it. At the body site it has a body inside."""

    def __init__(self, case: Case, key):
        for_memory, for_shared = jax.random.split(key)
        with mock.patch.dict(MEMORIES, {case.name: case.cls}):
            if case.cls.site == "body":
                self.memory = build_body(case.model, case.dims, for_memory)
            else:
                self.memory = case.cls(case.config, case.dims, for_memory)
            self.shared = build_shared(case.model, case.dims, for_shared)

    def init_state(self, batch_size: int):
        """Return the empty state."""
        return self.memory.init_state(batch_size)

    def __call__(self, x, state, seg: Segment):
        """Call the mechanism with its shared parameters in `seg.shared`."""
        return self.memory(x, state, seg.replace(shared={**collect_shared(self.shared), **seg.shared}))


def token(x):
    """Return token ids derived from the first numbers of x, so that they change with x. NumPy version: tests/golden/base.py."""
    first_BT = jax.tree.leaves(x)[0].astype(jnp.float32).reshape(*jax.tree.leaves(x)[0].shape[:2], -1)[..., 0]
    return jnp.floor(first_BT * 8).astype(jnp.int32) % DIMS.vocab_size


def source(x_BTD, seg: Segment) -> dict:
    """Return an encoder's output: three vectors made of the first token, in rows that are at the start of a document."""
    h_BSD = jnp.stack([jnp.roll(x_BTD[:, 0], s, -1) for s in (1, 2, 3)], 1)
    return {"encoded/h": h_BSD, "encoded/length": jnp.where(seg.position_BT[:, 0] == 0, 3, 0) * (seg.length_B > 0)}


@functools.cache
def cases(given: str = "") -> tuple[Case, ...]:
    """Return a Case for each tiny setting of every mechanism, or of the class that `path/to/file.py:ClassName` names."""
    memories = {"given": load(given)} if given else MEMORIES
    found = []
    for name, cls in memories.items():
        configs = cls.tiny
        different = [
            f.name for f in dataclasses.fields(configs[0]) if len({str(getattr(config, f.name)) for config in configs}) > 1
        ]
        for config in configs:
            label = "".join(f"-{getattr(config, field)}" for field in different)
            found.append(Case(name, cls, config, label=label))
    return tuple(found)


def load(given: str) -> type[Memory]:
    """Return the class that `--memory` names."""
    try:
        return load_class(given)
    except UserError as error:
        raise pytest.UsageError(f"--memory={given}: {error}") from None


# --- pieces of a test -------------------------------------------------------------------------------------------------------


def cut(x, start: int, time: int):
    """Return the `time` tokens of x that start at `start`."""
    return jax.tree.map(lambda a: a[:, start : start + time], x)


def at(start, time: int, length_B=None, reset_B=None) -> Segment:
    """Return a Segment whose rows start at position `start` (an int, or one per row)."""
    return segment(np.broadcast_to(start, BATCH)[:, None] + np.arange(time), length_B, reset_B)


def calls_of(time: int, x):
    """Split x into calls of `time` tokens to scan over: [B, P T, ...] -> [P, B, T, ...]."""
    return jax.tree.map(lambda a: a.reshape(BATCH, -1, time, *a.shape[2:]).swapaxes(0, 1), x)


def joined(y_PBT):
    """Undo `calls_of`: [P, B, T, ...] -> [B, P T, ...]."""
    return y_PBT.swapaxes(0, 1).reshape(BATCH, -1, *y_PBT.shape[3:])


def distance(a, b) -> float:
    """Return the largest difference between two trees, relative to the larger of 1 and b's largest entry.

    NaN counts as infinite.
    """
    worst = 0.0
    for m, n in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        m, n = np.asarray(m, np.float64), np.asarray(n, np.float64)
        gap = np.abs(m - n).max(initial=0) / max(1.0, np.abs(n).max(initial=0))
        worst = max(worst, np.inf if np.isnan(gap) else gap)
    return worst


def rows_differ(a, b, axes=0) -> np.ndarray:
    """Return for each row whether any bit differs between two trees. axes: see `shard`. NaN differs from everything."""
    axes = axes if not isinstance(axes, int) else jax.tree.map(lambda _: axes, a)
    differs = np.zeros(BATCH, bool)
    for m, n, axis in zip(*map(jax.tree.leaves, (a, b, axes)), strict=True):
        if axis >= 0:
            unequal = np.moveaxis(np.asarray(m) != np.asarray(n), axis, 0)
            differs |= unequal.reshape(BATCH, -1).any(1)
    return differs


def gathers(hlo: str) -> list[str]:
    """Return the collectives of a compiled program that move more than scalars."""
    found = re.findall(r"= (.*?) (all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter)\w*(?:-start)?\(", hlo)
    return [f"{name} {shape}" for shape, name in found if re.search(r"\[[^\]]", shape)]
