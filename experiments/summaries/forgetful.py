"""RMT's encoder form without its memory, and with the memory of another row. They read with the weights of `rmt_encoder`."""

import jax
import jax.numpy as jnp

from memtx.memory.rmt_encoder import RMTEncoder


class Wiped(RMTEncoder):
    """Each segment begins with the learned memory tokens."""

    def segment(self, x_BCD, token_BC, length_B, state, seg, key):
        """Read one segment, and forget it."""
        return state, super().segment(x_BCD, token_BC, length_B, state, seg, key)[1]


class Swapped(RMTEncoder):
    """Each segment begins with the memory tokens that another row of the batch wrote."""

    def segment(self, x_BCD, token_BC, length_B, state, seg, key):
        """Read one segment, and hand its memory to the next row."""
        after, y_BCD = super().segment(x_BCD, token_BC, length_B, state, seg, key)
        return jax.tree.map(lambda a: jnp.roll(a, 1, 0), after), y_BCD
