"""Several layers share one memory: its writer publishes its keys, values and state, and readers attend to them.

    writer   y = memory(q, k, v, S)           S: its state before this call
    reader   y' = memory'(q', k, v, S)        the reader has its own q', output map and parameters of memory' (gates, scales)

A reader calls the mechanism with the writer's keys, values and state, and drops the state that comes back. At each token it
therefore sees the same entries as the writer, however the text is cut. Gradients pass through the writer's k, v and
S as they do in the writer. (The state after the call would show the reader the future.)

The parameters of the mechanism must not affect its writes (`Memory.readable`).

Source: for keys and values of plain attention Sun et al. 2024 (YOCO, arXiv 2405.05254), Brandon et al. 2024 (2405.12981).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
from flax import nnx
from jax import Array

from memtx.core import Dims, Layer, Segment, emit

KIND = "memory"  # a writer emits "memory/NAME", and readers find it in `seg.shared` under that name


class Written(nnx.Module):
    """A memory at the attention site that other layers read. It emits its keys, values and state."""

    site = "attention"

    def __init__(self, name: str, make: Callable[[Dims, Array], Layer], dims: Dims, key: Array):
        self.name, self.memory = f"{KIND}/{name}", make(dims, key)

    def init_state(self, batch_size: int):
        """Return the state of the memory."""
        return self.memory.init_state(batch_size)

    def __call__(self, x, state, seg: Segment, *, key: Array | None = None):
        """Emit (k, v, state) as "memory/NAME" and call the memory."""
        _, k, v = x
        emit(self.name, (k, v, state))
        return self.memory(x, state, seg, key=key)


class Reader(Written):
    """A memory at the attention site that reads the memory of another layer. It uses only the queries of x."""

    def init_state(self, batch_size: int):
        """Return (): a reader has no state."""
        return ()

    def __call__(self, x, state, seg: Segment, *, key: Array | None = None):
        """Read the writer's memory with the reader's queries."""
        k, v, written = seg.shared[self.name]
        y, _ = self.memory((x[0], k, v), written, seg, key=key)
        return y, state


def publish(seg: Segment, emitted: Mapping[str, tuple], of=lambda value: value) -> tuple[Segment, dict[str, tuple]]:
    """Return the Segment for later layers, with the emitted memories in `shared`, and the other emissions.

    of: a function to apply to each memory, such as `last_group`.
    """
    memories = {name: of(values[-1]) for name, values in emitted.items() if name.startswith(f"{KIND}/")}
    others = {name: values for name, values in emitted.items() if name not in memories}
    return seg.replace(shared={**seg.shared, **memories}), others


def last_group(written):
    """Return the last group of arrays that a stack emitted. The arrays have a leading axis G."""
    return jax.tree.map(lambda a: a[-1], written)
