"""The feed-forward network.

B stream, T time, D model.
"""

from functools import partial

import jax
from flax import nnx
from jax import Array

from memtx.core import Dims
from memtx.nn.linear import Linear

ACTIVATIONS = {
    "gelu": jax.nn.gelu,  # the tanh approximation
    "gelu_exact": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "geglu": jax.nn.gelu,
    "swiglu": jax.nn.silu,
}
GATED = ("geglu", "swiglu")


class MLP(nnx.Module):
    """down(act(up x)), or down(act(gate x) * up x) if gated, with gate and up in one matrix.

    It is called at the residual site and has no state.
    """

    site = "residual"

    def __init__(self, dims: Dims, key: Array, *, ff_dim: int, activation: str, bias: bool = False):
        up, down = jax.random.split(key)
        self.activation = activation
        self.up = Linear(up, dims.width, (1 + (activation in GATED)) * ff_dim, bias=bias)
        self.down = Linear(down, ff_dim, dims.width, bias=bias, shard="in")

    def init_state(self, batch_size: int) -> tuple:
        """Return (): it has no state."""
        return ()

    def __call__(self, x_BTD: Array, state, seg, *, key: Array | None = None) -> tuple[Array, tuple]:
        """Return y_BTD and the state unchanged."""
        act = ACTIVATIONS[self.activation]
        if self.activation in GATED:
            gate, h = self.up.halves(x_BTD)
            return self.down(act(gate) * h), state
        return self.down(act(self.up(x_BTD))), state
