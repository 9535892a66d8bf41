"""Linear attention, RetNet and GLA: the state is one matrix per head, which may decay.

    S_t = G_t (.) S_{t-1} + k_t v_t^T ;  o_t = S_t^T q_t ;  y = out(gate(x) (.) norm(o))
    linear_attention   G = 1 ;  q, k -> elu + 1 ;  o / sum_d (z_t)_d (q_t)_d  with  z_t = sum of k   (`normaliser`)
    retnet             G = gamma_h = 1 - 2^(-5-h), fixed ;  q, k rotated by position
    gla                G = exp(g_t), per key dimension: g = log sigmoid(low rank(x)) / 16

Everything is differentiable, as far back as the caller's `detach` allows. `MatrixMemory` is the layer around the chunked
recurrence of memtx.ops.delta, which the DeltaNet family (delta.py) also uses. A subclass defines only the differences. All
have the same options: an output gate, a causal depthwise convolution over q, k and v, key and value dims, and the size of
chunks, which affects the cost but not the result.

RetNet rotates q and k by the position in the document, which is exact at any position. Rotating the state with each call
instead would accumulate rounding errors.

Deviations: the norm is a per-head RMSNorm with a learned scale (RetNet: a GroupNorm without one, GLA: a LayerNorm). RetNet
uses the angles of rope with the base of the model. Values are as wide as keys unless `value_dim` is set.

Sources: Katharopoulos et al. 2020 (arXiv 2006.16236); Sun et al. 2023 (2307.08621); Yang et al. 2023 (2312.06635).
B stream, T time, N heads, K key dim, V value dim, D model, E = N (2K + V), C convolution taps carried.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from memtx.core import Dims, Memory, Segment, State, emit, pytree, wants
from memtx.errors import UserError, positive
from memtx.memory.inspect import Inspectable
from memtx.nn.conv import ShortConv
from memtx.nn.linear import Linear, Norm, elu_plus_one
from memtx.nn.positions import rotate
from memtx.ops.delta import delta_rule


@pytree
class Matrix(Inspectable):
    """The state of a matrix memory. inputs_BCE: the last inputs of the convolution, or () without one."""

    s_BNKV: Array
    inputs_BCE: State

    @property
    def matrices(self) -> tuple[Array]:
        """Return the matrix of each head (see `Inspectable`)."""
        return (self.s_BNKV,)


class MatrixMemory(Memory):
    """A matrix memory at the residual site, x_BTD -> x_BTD. A subclass defines `features`, `rates` and other differences."""

    site = "residual"
    kind = "fixed matrix"
    entries = False
    divides_time = True
    activation: ClassVar[Callable] = staticmethod(jax.nn.silu)  # of the output gate

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The settings that all matrix memories share."""

        key_dim: int = 0  # of a head; 0: the model's head_dim
        value_dim: int = 0  # of a head; 0: the model's head_dim
        conv: int = 0  # taps of the causal convolution over q, k and v, which a SiLU follows; 0: neither
        gate: bool = True  # an output gate
        chunk: int = 0  # tokens that are computed together, a power of two; 0: the best for the platform

        def __post_init__(self):
            if self.chunk < 0 or self.chunk & (self.chunk - 1):
                raise UserError(f"chunk must be a power of two or 0, not {self.chunk}")
            if min(self.key_dim, self.value_dim, self.conv) < 0:
                raise UserError("key_dim, value_dim and conv cannot be negative")

    def __init__(self, config: Config, dims: Dims, key: Array):
        qkv, conv, gate, out, rates = jax.random.split(key, 5)
        self.config, self.width = config, dims.width
        self.num_heads = dims.num_heads
        self.key_dim, self.value_dim = config.key_dim or dims.head_dim, config.value_dim or dims.head_dim
        inner = self.num_heads * self.value_dim
        self.channels = self.num_heads * (2 * self.key_dim + self.value_dim)
        self.qkv, self.out = Linear(qkv, dims.width, self.channels), Linear(out, inner, dims.width, shard="in")
        self.conv = ShortConv(conv, self.channels, config.conv) if config.conv else None
        self.gate = self.make_gate(gate, inner) if config.gate else None
        self.make_rates(rates)
        self.make_norm()

    def make_gate(self, key: Array, inner: int) -> nnx.Module:
        """Return the map from x to the logits of the output gate."""
        return Linear(key, self.width, inner)

    def make_rates(self, key: Array) -> None:
        """Create the parameters of `rates`."""

    def make_norm(self) -> None:
        """Create the norm of the outputs of each head."""
        self.norm = Norm("rms", self.value_dim)

    def init_state(self, batch_size: int) -> Matrix:
        """Return the empty state."""
        s_BNKV = jnp.zeros((batch_size, self.num_heads, self.key_dim, self.value_dim))
        return Matrix(s_BNKV, self.conv.init_state(batch_size) if self.conv else ())

    def __call__(self, x_BTD, state: Matrix, seg: Segment, *, key: Array | None = None):
        """Read a segment: (x_BTD, state) -> (y_BTD, state)."""
        qkv_BTE, inputs_BCE = self.qkv(x_BTD), state.inputs_BCE
        if self.conv is not None:
            qkv_BTE, inputs_BCE = self.conv(qkv_BTE, inputs_BCE, seg.length_B)
        heads = qkv_BTE.astype(jnp.float32).reshape(*x_BTD.shape[:2], self.num_heads, -1)
        q, k, v = jnp.split(heads, [self.key_dim, 2 * self.key_dim], -1)
        q, k, v = self.features(q, k, v, seg)
        live_BT11 = seg.mask_BT[..., None, None]
        decay, beta = self.rates(x_BTD)
        if wants("metric"):
            observe({"keep": None if decay is None else jnp.exp(decay), "write": beta}, live_BT11)
        decay = None if decay is None else jnp.where(live_BT11, decay, 0)
        k = jnp.where(live_BT11, k, 0)
        o_BTNV, s_BNKV = delta_rule(q, k, v, state.s_BNKV, decay, beta, chunk=self.config.chunk)
        return self.read_out(o_BTNV, x_BTD), Matrix(s_BNKV, inputs_BCE)

    def features(self, q_BTNK: Array, k_BTNK: Array, v_BTNV: Array, seg: Segment) -> tuple[Array, Array, Array]:
        """Return the q, k and v that enter the recurrence, float32."""
        return q_BTNK * self.key_dim**-0.5, k_BTNK, v_BTNV

    def rates(self, x_BTD: Array) -> tuple[Array | None, Array | None]:
        """Return the log decay [B, T, N, 1 or K] <= 0 and beta [B, T, N, 1], float32, or None if the mechanism lacks one."""
        return None, None

    def read_out(self, o_BTNV: Array, x_BTD: Array) -> Array:
        """Return y_BTD from the reads of all heads: norm, gate and output map."""
        y = self.norm(o_BTNV)
        if self.gate is not None:
            y = y * self.activation(self.gate(x_BTD).astype(jnp.float32)).reshape(y.shape)
        return self.out(y.reshape(*x_BTD.shape[:2], -1).astype(x_BTD.dtype))


def observe(gates: dict[str, Array | None], live_BT11: Array) -> None:
    """Emit the mean of each gate [B, T, N, ...] over the real tokens, per head."""
    for name, gate in gates.items():
        if gate is not None:
            total_N = jnp.where(live_BT11, gate, 0).mean(-1).sum((0, 1))
            emit(f"metric/{name}", total_N / jnp.maximum(live_BT11.sum(), 1))


class LinearAttention(MatrixMemory):
    """Linear attention, with a division by the sum of the weights or with a norm per head."""

    @dataclasses.dataclass(frozen=True)
    class Config(MatrixMemory.Config):
        """The settings of linear attention. By default there is no gate."""

        gate: bool = False
        normaliser: bool = True  # divide by the sum of the weights; False: a norm per head

    config: Config
    tiny = (Config(chunk=4),)

    def make_norm(self) -> None:
        """Create the norm of each head, or divide by the sum of the weights."""
        self.norm = Norm("rms", self.value_dim) if not self.config.normaliser else divided

    def init_state(self, batch_size: int) -> Matrix:
        """Return the empty state, in which V has one more entry for the sum of the weights."""
        state = super().init_state(batch_size)
        if not self.config.normaliser:
            return state
        return dataclasses.replace(state, s_BNKV=jnp.pad(state.s_BNKV, [(0, 0)] * 3 + [(0, 1)]))

    def features(self, q_BTNK, k_BTNK, v_BTNV, seg):
        """Apply elu + 1 to q and k."""
        if self.config.normaliser:  # a value of 1 sums the weights
            v_BTNV = jnp.pad(v_BTNV, [(0, 0)] * 3 + [(0, 1)], constant_values=1)
        return elu_plus_one(q_BTNK), elu_plus_one(k_BTNK), v_BTNV


def divided(o_BTNV: Array) -> Array:
    """Divide o by its last entry, and drop this entry. Returns 0 if nothing was read."""
    return o_BTNV[..., :-1] / jnp.maximum(o_BTNV[..., -1:], 1e-6)


class RetNet(MatrixMemory):
    """RetNet: a fixed decay per head, and rotated q and k."""

    tiny = (MatrixMemory.Config(chunk=4),)

    def __init__(self, config: MatrixMemory.Config, dims: Dims, key: Array):
        super().__init__(config, dims, key)
        self.rope_base = dims.rope_base
        if self.key_dim % 2:
            raise UserError(f"retnet rotates pairs of key dimensions: key_dim must be even, not {self.key_dim}")

    def features(self, q_BTNK, k_BTNK, v_BTNV, seg):
        """Rotate q and k by their positions."""
        q, k = (rotate(x, seg.position_BT, self.rope_base) for x in (q_BTNK, k_BTNK))
        return q * self.key_dim**-0.5, k, v_BTNV

    def rates(self, x_BTD):
        """Return the fixed log decay of each head and no beta."""
        log_gamma_N1 = np.log1p(-(2.0 ** (-5 - np.arange(self.num_heads)[:, None])))
        return jnp.broadcast_to(jnp.asarray(log_gamma_N1, jnp.float32), (*x_BTD.shape[:2], self.num_heads, 1)), None


class LowRank(nnx.Module):
    """Two linear maps in sequence: D -> rank -> E."""

    def __init__(self, key: Array, d_in: int, rank: int, d_out: int, *, bias: bool = False):
        down, up = jax.random.split(key)
        self.down, self.up = Linear(down, d_in, rank), Linear(up, rank, d_out, bias=bias)

    def __call__(self, x_BTD: Array) -> Array:
        """Return y_BTE."""
        return self.up(self.down(x_BTD))


class GLA(MatrixMemory):
    """Gated linear attention: a learned decay per key dimension."""

    temperature = 16

    @dataclasses.dataclass(frozen=True)
    class Config(MatrixMemory.Config):
        """The settings of GLA."""

        rank: int = 16  # of the map from x to the decays

        def __post_init__(self):
            super().__post_init__()
            positive(self, "rank")

    config: Config
    tiny = (Config(chunk=4, rank=3),)

    def make_rates(self, key: Array) -> None:
        """Create the low-rank map to the decays."""
        self.decay = LowRank(key, self.width, self.config.rank, self.num_heads * self.key_dim, bias=True)

    def rates(self, x_BTD):
        """Return the log decay of each key dimension and no beta."""
        logit_BTNK = self.decay(x_BTD).astype(jnp.float32).reshape(*x_BTD.shape[:2], self.num_heads, -1)
        return jax.nn.log_sigmoid(logit_BTNK) / self.temperature, None
