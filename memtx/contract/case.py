"""What the contract tests are written with: a Case is one mechanism at tiny settings, its call compiled once per shape.

B stream, T time, N query heads, K kv heads, H head dim, D model.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from memtx.config import Model, complete_model
from memtx.core import Dims, Segment, batch_axes, reset, segment
from memtx.memory import MEMORIES
from memtx.models import patterns
from memtx.models.body import body, hand_out, shared

BATCH = 4
# float32 rounding (armt through a language model comes to 2.4e-5; nothing else was seen above 2e-5); what a control must change
EXACT, MOVED = 3e-5, 1e-3
DIMS = Dims(width=8, num_heads=4, num_kv_heads=2, head_dim=4, position="rope", vocab_size=16)


# --- placement on the devices that --devices asks for -----------------------------------------------------------------------


@functools.cache
def mesh(data: int = 0):
    """All devices as ('data', 'model'); None where there is only one."""
    devices = jax.device_count()
    data = data or min(devices, BATCH)
    return None if devices == 1 else jax.make_mesh((data, devices // data), ("data", "model"), (AxisType.Auto,) * 2)


def place(tree, axes=0, on=None):
    """`tree` with its batch axes (a tree of ints, or one for all leaves; -1: none) sharded over `data`."""
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
    name: str
    cls: type
    config: object
    dims: Dims = DIMS
    label: str = ""

    @property
    def id(self) -> str:
        return self.name + self.label

    @cached_property
    def model(self) -> Model:
        """The smallest model that holds the mechanism: one block, or one block inside it."""
        entry = getattr(self.cls, "block", "window") if self.cls.site in ("body", "head") else self.name
        around = {self.cls.site: self.name} if self.cls.site in ("body", "head") else {}
        inner = {name: MEMORIES[name].tiny[0] for name in patterns.names([((entry,), 1)]) if name != self.name}
        sizes = {field.name: getattr(self.dims, field.name) for field in dataclasses.fields(Dims)}
        memory = {self.name: self.config, **inner}
        return complete_model(Model(stacks=(((entry,), 1),), memory=memory, ff_dim=16, **around, **sizes))

    @cached_property
    def layer(self):
        with jax.ensure_compile_time_eval():  # the test that asks first may be tracing, and others use it later
            return Alone(self, jax.random.key(0))

    @cached_property
    def params(self):
        with jax.ensure_compile_time_eval():
            return place(nnx.to_pure_dict(nnx.state(self.layer)), -1)

    @cached_property
    def axes(self):
        return batch_axes(self.layer.init_state)

    @cached_property
    def remembers(self) -> bool:
        """False for a table of parameters, which keeps nothing from what it reads."""
        return bool(jax.tree.leaves(self.axes))

    @property
    def causal(self) -> bool:
        return getattr(self.cls, "causal", True)

    @property
    def encoded(self) -> bool:
        return getattr(self.cls, "encoded", False)

    @property
    def keeps_x(self) -> bool:
        """Whether what it reads goes into its state."""
        return self.remembers and not self.encoded

    def init_state(self):
        return place(self.layer.init_state(BATCH), self.axes)

    def apply(self, params, x, state, seg: Segment):
        """The call as a model makes it: reset, then the layer."""
        graph, abstract = nnx.split(self.layer)
        nnx.replace_by_pure_dict(abstract, params)
        layer = nnx.merge(graph, abstract)
        given = {**source(x, seg), **seg.shared} if self.encoded else seg.shared
        return layer(x, reset(layer, state, seg.reset_B), seg.replace(token_BT=token(x), shared=given))

    @cached_property
    def jitted(self):
        return jax.jit(self.apply)

    def call(self, x, state, seg: Segment):
        return self.jitted(self.params, place(x), state, place(seg))

    def x(self, seed: int, time: int = 16, dtype=jnp.float32):
        """Random input of the mechanism's site, a pytree of [B, T, ...]."""
        rng = np.random.default_rng(seed)
        dims = self.dims
        if self.cls.site == "attention":
            heads = (dims.num_heads, dims.num_kv_heads, dims.num_kv_heads)
            return tuple(jnp.asarray(rng.normal(size=(BATCH, time, n, dims.head_dim)), dtype) for n in heads)
        x = jnp.asarray(rng.normal(size=(BATCH, time, dims.width)), dtype)
        return (x, jnp.asarray(rng.normal(size=(BATCH, time, dims.vocab_size)), dtype)) if self.cls.site == "head" else x

    def run(self, x, cuts, state=None, start: int = 0, between=lambda state: state):
        """Feed x[:, start:] in calls of `cuts` tokens -> (y of all calls, final state). `between` tampers with the state."""
        state, outs = self.init_state() if state is None else state, []
        for time in cuts:
            y, state = self.call(cut(x, start, time), between(state), at(start, time))
            outs.append(np.asarray(y))
            start += time
        return np.concatenate(outs, 1), state

    def warm(self, time: int = 7):
        """A state in use, rows out of step with each other."""
        return self.call(self.x(99, time), self.init_state(), at(0, time, [7, 4, 6, 5]))[1]


class Alone(nnx.Module):
    """The mechanism as a model holds it: around a body if that is its site, with what its layers share. A layer itself."""

    def __init__(self, case: Case, key):
        for_memory, for_shared = jax.random.split(key)
        with mock.patch.dict(MEMORIES, {case.name: case.cls}):
            if case.cls.site == "body":
                self.memory = body(case.model, case.dims, for_memory)
            else:
                self.memory = case.cls(case.config, case.dims, for_memory)
            self.shared = shared(case.model, case.dims, for_shared)

    def init_state(self, batch_size: int):
        return self.memory.init_state(batch_size)

    def __call__(self, x, state, seg: Segment):
        return self.memory(x, state, seg.replace(shared={**hand_out(self.shared), **seg.shared}))


def token(x):
    """Ids from the first numbers of x, so that what moves x moves them; tests/golden/base.py does the same in numpy."""
    first_BT = jax.tree.leaves(x)[0].astype(jnp.float32).reshape(*jax.tree.leaves(x)[0].shape[:2], -1)[..., 0]
    return jnp.floor(first_BT * 8).astype(jnp.int32) % DIMS.vocab_size


def source(x_BTD, seg: Segment) -> dict:
    """What an encoder would give: in the rows that are at a document's start, three vectors made of its first token."""
    h_BSD = jnp.stack([jnp.roll(x_BTD[:, 0], s, -1) for s in (1, 2, 3)], 1)
    return {"encoded/h": h_BSD, "encoded/length": jnp.where(seg.position_BT[:, 0] == 0, 3, 0) * (seg.length_B > 0)}


@functools.cache
def cases(given: str = "") -> tuple[Case, ...]:
    """Every entry of MEMORIES, or the class that `path/to/file.py:ClassName` names, at each of its tiny settings."""
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


def load(given: str) -> type:
    path, _, name = given.rpartition(":")
    if not Path(path).is_file():
        raise pytest.UsageError(f"--memory={given}: no such file; give path/to/file.py:ClassName")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cls = getattr(module, name, None)
    if cls is None:
        raise pytest.UsageError(f"--memory={given}: {path} has no class {name}")
    missing = [a for a in ("site", "kind", "Config", "tiny") if not hasattr(cls, a)]
    if missing:
        raise pytest.UsageError(f"--memory={given}: {name} lacks {', '.join(missing)}; see memtx.core.Memory")
    return cls


# --- pieces of a test -------------------------------------------------------------------------------------------------------


def cut(x, start: int, time: int):
    return jax.tree.map(lambda a: a[:, start : start + time], x)


def at(start, time: int, length_B=None, reset_B=None) -> Segment:
    """A Segment whose rows stand at `start` (an int, or one per row)."""
    return segment(np.broadcast_to(start, BATCH)[:, None] + np.arange(time), length_B, reset_B)


def calls_of(time: int, x):
    """[B, P T, ...] -> [P, B, T, ...], to scan over calls."""
    return jax.tree.map(lambda a: a.reshape(BATCH, -1, time, *a.shape[2:]).swapaxes(0, 1), x)


def joined(y_PBT):
    return y_PBT.swapaxes(0, 1).reshape(BATCH, -1, *y_PBT.shape[3:])


def distance(a, b) -> float:
    """The largest difference between two trees, relative to the larger of 1 and b's largest entry; NaN counts as infinite."""
    worst = 0.0
    for m, n in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        m, n = np.asarray(m, np.float64), np.asarray(n, np.float64)
        gap = np.abs(m - n).max(initial=0) / max(1.0, np.abs(n).max(initial=0))
        worst = max(worst, np.inf if np.isnan(gap) else gap)
    return worst


def rows_differ(a, b, axes=0) -> np.ndarray:
    """Per row, whether any bit of it differs between two trees; `axes` as in `place`. NaN differs from everything."""
    axes = axes if not isinstance(axes, int) else jax.tree.map(lambda _: axes, a)
    differs = np.zeros(BATCH, bool)
    for m, n, axis in zip(*map(jax.tree.leaves, (a, b, axes)), strict=True):
        if axis >= 0:
            unequal = np.moveaxis(np.asarray(m) != np.asarray(n), axis, 0)
            differs |= unequal.reshape(BATCH, -1).any(1)
    return differs


def gathers(hlo: str) -> list[str]:
    """Collectives of a compiled program that move more than scalars."""
    found = re.findall(r"= (.*?) (all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter)\w*(?:-start)?\(", hlo)
    return [f"{name} {shape}" for shape, name in found if re.search(r"\[[^\]]", shape)]
