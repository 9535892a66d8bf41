"""A short causal convolution over time that carries its last inputs from call to call.

B stream, T time, E features, C = taps - 1 inputs carried.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.core import State
from memtx.nn.linear import normal
from memtx.ops.rows import shift


class ShortConv(nnx.Module):
    """SiLU of a convolution over the last `taps` inputs of each feature. Before the first input there are zeros.

    One tap is SiLU alone. The state has the last inputs, [B, C, E] in float32, or is () with one tap.
    """

    def __init__(self, key: Array, features: int, taps: int):
        self.taps, self.features = taps, features
        self.w = normal(key, (taps, features), optim="no_decay") if taps > 1 else None

    def init_state(self, batch_size: int) -> State:
        """Return zeros, the state before any input."""
        return jnp.zeros((batch_size, self.taps - 1, self.features)) if self.taps > 1 else ()

    def __call__(self, x_BTE: Array, before_BCE: State, length_B: Array) -> tuple[Array, State]:
        """Return y_BTE and the new state. length_B: how many inputs are real."""
        if self.w is None:
            return jax.nn.silu(x_BTE), before_BCE
        joined = jnp.concatenate([before_BCE.astype(x_BTE.dtype), x_BTE], 1)
        time, w = x_BTE.shape[1], self.w[...].astype(x_BTE.dtype)
        y_BTE = sum(joined[:, i : i + time] * w[i] for i in range(self.taps))
        return jax.nn.silu(y_BTE), shift(before_BCE, x_BTE, length_B)
