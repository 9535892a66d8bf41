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
    """down(act(up x)), or down(act(gate x) * up x) if gated.

    It is called at the residual site and has no state.
    """

    site = "residual"

    def __init__(self, dims: Dims, key: Array, *, ff_dim: int, activation: str, bias: bool = False):
        gate, up, down = jax.random.split(key, 3)
        self.activation = activation
        self.gate = Linear(gate, dims.width, ff_dim, bias=bias) if activation in GATED else None
        self.up = Linear(up, dims.width, ff_dim, bias=bias)
        self.down = Linear(down, ff_dim, dims.width, bias=bias, shard="in")

    def init_state(self, batch_size: int) -> tuple:
        """Return (): it has no state."""
        return ()

    def __call__(self, x_BTD: Array, state, seg, *, key: Array | None = None) -> tuple[Array, tuple]:
        """Return y_BTD and the state unchanged."""
        act = ACTIVATIONS[self.activation]
        if self.gate is not None:
            return self.down(act(self.gate(x_BTD)) * self.up(x_BTD)), state
        return self.down(act(self.up(x_BTD))), state
