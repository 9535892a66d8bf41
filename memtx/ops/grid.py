"""Grid: the tokens of a call, cut at each row's chunk boundaries, with static shapes.

A mechanism that works in chunks of `size` tokens must give the same result however a text is cut into calls, and a reset
moves the boundaries of only one row. A Grid lays the T tokens of a call out as K blocks of Q = min(T, size) slots. Block 0
continues each row's unfinished chunk, and every later block starts a chunk.

B stream, T time, K blocks, Q slots in a block.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from memtx.core import collect, emit_all
from memtx.ops.rows import put, take


class Grid:
    """The block and the slot of each token of a call.

    mask_BT    which tokens are real (a prefix of each row)
    offset_B   how many tokens each row's unfinished chunk already has, 0 <= offset < size

    valid_KBQ  whether a slot has a token          slot_KBQ      the token's index in its chunk
    start_KB   whether a chunk starts in a block   complete_KB   whether a chunk ends in a block
    offset_B   the offset of the next call
    """

    def __init__(self, mask_BT: Array, offset_B: Array, size: int):
        time = mask_BT.shape[1]
        self.mask_BT = mask_BT
        self.slots = min(time, size)
        self.blocks = -(-(size - 1 + time) // size)
        index_BT = offset_B[:, None] + jnp.arange(time)
        chunk, slot = index_BT // size, index_BT % size
        index = chunk * self.slots + jnp.where(chunk == 0, slot - offset_B[:, None], slot)
        self._index_BT = jnp.where(mask_BT, index, self.blocks * self.slots)  # padding is dropped
        self.valid_KBQ = self.pack(mask_BT)
        self.slot_KBQ = self.pack(slot)
        self.start_KB = self.valid_KBQ[..., 0] & (self.slot_KBQ[..., 0] == 0)
        self.complete_KB = (self.valid_KBQ & (self.slot_KBQ == size - 1)).any(-1)
        self.offset_B = ((offset_B + mask_BT.sum(1, dtype=jnp.int32)) % size).astype(jnp.int32)

    def pack(self, x_BT: Array) -> Array:
        """Move tokens to their slots, [B, T, ...] -> [K, B, Q, ...]. Empty slots are zero."""
        batch, rest = x_BT.shape[0], x_BT.shape[2:]
        flat = put(jnp.zeros((batch, self.blocks * self.slots, *rest), x_BT.dtype), self._index_BT, x_BT)
        return jnp.moveaxis(flat.reshape((batch, self.blocks, self.slots, *rest)), 1, 0)

    def unpack(self, y_KBQ: Array) -> Array:
        """Move slots back to tokens, [K, B, Q, ...] -> [B, T, ...]. Padding is zero."""
        flat = jnp.moveaxis(y_KBQ, 0, 1)
        flat = flat.reshape((flat.shape[0], -1, *y_KBQ.shape[3:]))
        y_BT = take(flat, jnp.minimum(self._index_BT, self.blocks * self.slots - 1))
        return jnp.where(self.mask_BT.reshape(self.mask_BT.shape + (1,) * (y_BT.ndim - 2)), y_BT, 0)


def skip_if_empty(valid: Array, work, carry, *inputs) -> tuple[Any, Any]:
    """Call `work(carry, *inputs) -> (carry, outputs)`, or skip it at run time if no slot of any row is valid.

    If it is skipped, the carry stays, and outputs and emissions are zero.
    """
    tapped = collect(work)

    def run(carry, *inputs):
        (carry, outputs), aux = tapped(carry, *inputs)
        return carry, (outputs, aux)

    shapes = jax.eval_shape(run, carry, *inputs)[1]

    def skip(carry, *_):
        return carry, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    carry, (outputs, aux) = lax.cond(valid.any(), run, skip, carry, *inputs)
    emit_all(aux)
    return carry, outputs
