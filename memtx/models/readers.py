"""One memory that several layers read: the one that writes it hands on what it is called with, and readers ask it their own.

    writer   y = memory(q, k, v, S)           S: its state before this call
    reader   y' = memory'(q', k, v, S)        q', the output map and the parameters of memory' (gates, scales) are its own

A reader calls the mechanism as the writer did and drops the state that comes back. So at each token it sees what the writer
sees there, by the mechanism's own rules and however text is cut; it has no keys, values or state of its own, and what is
differentiable through the writer's k, v and S is so through the reader's. (The state after the call would show it the future.)

It needs a mechanism that writes the same whatever its parameters are (`Memory.readable`).

Source: for keys and values of plain attention Sun et al. 2024 (YOCO, arXiv 2405.05254), Brandon et al. 2024 (2405.12981).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
from flax import nnx
from jax import Array

from memtx.core import Dims, Layer, Segment, emit

KIND = "memory"  # what is handed on is emitted as "memory/NAME", and found in `seg.shared` under that name


class Written(nnx.Module):
    """A memory at the attention site that other layers read."""

    site = "attention"

    def __init__(self, name: str, make: Callable[[Dims, Array], Layer], dims: Dims, key: Array):
        self.name, self.memory = f"{KIND}/{name}", make(dims, key)

    def init_state(self, batch_size: int):
        return self.memory.init_state(batch_size)

    def __call__(self, x, state, seg: Segment, *, key: Array | None = None):
        _, k, v = x
        emit(self.name, (k, v, state))
        return self.memory(x, state, seg, key=key)


class Reader(Written):
    """A memory at the attention site that reads what another layer writes; of x only the queries count."""

    def init_state(self, batch_size: int):
        return ()

    def __call__(self, x, state, seg: Segment, *, key: Array | None = None):
        k, v, written = seg.shared[self.name]
        y, _ = self.memory((x[0], k, v), written, seg, key=key)
        return y, state


def hand_on(seg: Segment, emitted: Mapping[str, tuple], of=lambda value: value) -> tuple[Segment, dict[str, tuple]]:
    """The Segment that later layers get, with the memories that were emitted, and what else was."""
    memories = {name: of(values[-1]) for name, values in emitted.items() if name.startswith(f"{KIND}/")}
    others = {name: values for name, values in emitted.items() if name not in memories}
    return seg.replace(shared={**seg.shared, **memories}), others


def last_group(memory):
    """What a stack handed on has a leading axis G of its groups."""
    return jax.tree.map(lambda a: a[-1], memory)
