"""LSTM and GRU layers, the first memories of neural language models.

    LSTM   i, f, o = sig(.), g = tanh(.) of x W + h U + b ;  c' = f c + i g ;  h' = o tanh(c')
    GRU    r, z = sig(x W + h U + b) ;  n = tanh(x Wn + r (h Un) + bn) ;  h' = (1 - z) n + z h

The products with the inputs are computed for all T tokens at once, and only the recurrent ones are sequential. The state has a
fixed size. The gradient reaches as far back as the caller's `detach` allows. The bias of the forget gate is initialised to 1.

Deviations: an output map E -> D follows, so that the layer fits a residual branch. The GRU has one bias per gate.

Sources: Hochreiter & Schmidhuber 1997, Gers et al. 2000; Cho et al. 2014 (arXiv 1406.1078), in the form of cuDNN and of
`reset_after` in Keras.
B stream, T time, D model, E hidden.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from memtx.core import Dims, Memory, Segment, pytree
from memtx.nn.linear import Linear, normal


@pytree
class Cell:
    """The state of an LSTM."""

    h_BE: Array
    c_BE: Array


def lstm(inputs_BE: Array, h_EE: Array, state: Cell) -> tuple[Cell, Array]:
    """Return the next state and the output h_BE. inputs_BE: x W + b of all gates."""
    i, f, g, o = jnp.split(inputs_BE + state.h_BE @ h_EE, 4, -1)
    c = jax.nn.sigmoid(f) * state.c_BE + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return Cell(h, c), h


def gru(inputs_BE: Array, h_EE: Array, h_BE: Array) -> tuple[Array, Array]:
    """Return the next state twice, because it is also the output. inputs_BE: x W + b of all gates."""
    r_in, z_in, n_in = jnp.split(inputs_BE, 3, -1)
    r_h, z_h, n_h = jnp.split(h_BE @ h_EE, 3, -1)
    r, z = jax.nn.sigmoid(r_in + r_h), jax.nn.sigmoid(z_in + z_h)
    h = (1 - z) * jnp.tanh(n_in + r * n_h) + z * h_BE
    return h, h


class Recurrent(Memory):
    """A recurrent layer at the residual site. A subclass defines the number of gates and the step."""

    site = "residual"
    kind = "fixed vector"
    entries = False
    gates: ClassVar[int]
    step: ClassVar[Callable]

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The settings."""

        hidden: int = 0  # width of the state, or 0 for the width of the model

    tiny = (Config(hidden=6),)

    def __init__(self, config: Config, dims: Dims, key: Array):
        x, h, out = jax.random.split(key, 3)
        self.hidden = config.hidden or dims.width
        self.x = Linear(x, dims.width, self.gates * self.hidden)
        self.h = normal(h, (self.hidden, self.gates * self.hidden), axes=(None, "model"))
        self.b = nnx.Param(self.initial_bias(), optim="no_decay")
        self.out = Linear(out, self.hidden, dims.width, shard="in")

    def initial_bias(self) -> Array:
        """Return the initial bias of all gates."""
        return jnp.zeros(self.gates * self.hidden)

    def __call__(self, x_BTD, state, seg: Segment, *, key: Array | None = None):
        """Read a segment: (x_BTD, state) -> (y_BTD, state)."""
        inputs_BTE = self.x(x_BTD).astype(jnp.float32) + self.b[...]
        h_EE = self.h[...]

        def body(state, inputs):
            inputs_BE, live_B = inputs
            new, h_BE = self.step(inputs_BE, h_EE, state)
            return jax.tree.map(lambda n, s: jnp.where(live_B[:, None], n, s), new, state), h_BE

        state, h_TBE = lax.scan(body, state, (inputs_BTE.swapaxes(0, 1), seg.mask_BT.T))
        return self.out(h_TBE.swapaxes(0, 1).astype(x_BTD.dtype)), state


class LSTM(Recurrent):
    """A long short-term memory layer."""

    gates, step = 4, staticmethod(lstm)

    def initial_bias(self) -> Array:
        """Return 1 for the forget gate and 0 for the others."""
        return jnp.zeros(4 * self.hidden).at[self.hidden : 2 * self.hidden].set(1.0)

    def init_state(self, batch_size: int) -> Cell:
        """Return h and c at zero."""
        return Cell(jnp.zeros((batch_size, self.hidden)), jnp.zeros((batch_size, self.hidden)))


class GRU(Recurrent):
    """A gated recurrent unit layer."""

    gates, step = 3, staticmethod(gru)

    def init_state(self, batch_size: int) -> Array:
        """Return h at zero, [B, E]."""
        return jnp.zeros((batch_size, self.hidden))
