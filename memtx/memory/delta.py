"""DeltaNet, Gated DeltaNet and KDA: a matrix memory per head that corrects its error at each key.

    S <- exp(g_t) (.) S ;  u = beta_t (v_t - S^T k_t) ;  S <- S + k_t u^T ;  o_t = S^T q_t / sqrt(K)
    y = out(gate(x) (.) RMSNorm(o))
    q, k = l2(SiLU(conv(.))) per head ;  v = SiLU(conv(.)) ;  beta = sigmoid(x Wb)       conv: causal, depthwise, 4 taps
    deltanet           g = 0 ;  no output gate
    gated_deltanet     g = -exp(A_h) softplus(x Wa + b_h), one number per head ;  gate = SiLU(x Wg)
    kda                g per key dimension, Wa and Wg of low rank ;  gate = sigmoid(x Wg)

Everything is differentiable, as far back as the caller's `detach` allows. `negative=True` doubles beta, so that a state
transition can have negative eigenvalues (Grazzi et al. 2024, arXiv 2411.12537).

Sources: Schlag et al. 2021 (arXiv 2102.11174) and Yang et al. 2024 (2406.06484); Yang et al. 2024 (2412.06464); Kimi Team
2025 (2510.26692). The layer and its options are those of MatrixMemory (linear.py), which calls memtx.ops.delta.
B stream, T time, N heads, K key dim, V value dim, D model, G = 1 or K.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.memory.linear import LowRank, MatrixMemory
from memtx.nn.linear import Linear, unit


class DeltaNet(MatrixMemory):
    """DeltaNet: the delta rule without decay."""

    @dataclasses.dataclass(frozen=True)
    class Config(MatrixMemory.Config):
        """The settings of DeltaNet. By default the convolution has 4 taps."""

        conv: int = 4
        gate: bool = False
        negative: bool = False  # beta in (0, 2)

    config: Config
    tiny = (Config(conv=3, chunk=4),)

    def make_rates(self, key: Array) -> None:
        """Create the map to beta."""
        self.beta = Linear(key, self.width, self.num_heads)

    def features(self, q_BTNK, k_BTNK, v_BTNV, seg):
        """Scale q and k of each head to length 1, and q also by 1 / sqrt(K)."""
        return unit(q_BTNK) * self.key_dim**-0.5, unit(k_BTNK), v_BTNV

    def rates(self, x_BTD):
        """Return beta without a decay."""
        beta = jax.nn.sigmoid(self.beta(x_BTD).astype(jnp.float32))[..., None]
        return None, 2 * beta if self.config.negative else beta


MAX_A_LOG = 40.0  # exp of a larger number could overflow, and a rate of exp(40) per token already clears the state


class GatedDeltaNet(DeltaNet):
    """Gated DeltaNet: the delta rule with a decay per head and an output gate."""

    least_rate: ClassVar[float] = 1e-6  # the smallest initial exp(A); a rate of 0 could not learn

    @dataclasses.dataclass(frozen=True)
    class Config(DeltaNet.Config):
        """The settings of Gated DeltaNet and KDA. By default there is an output gate."""

        gate: bool = True

    tiny = (Config(conv=3, chunk=4),)

    def make_rates(self, key: Array) -> None:
        """Draw exp(A) ~ U(least_rate, 16), and the step softplus(b) log-uniformly from (0.001, 0.1), as in Mamba 2."""
        beta, decay, a, step = jax.random.split(key, 4)
        super().make_rates(beta)
        self.decay = self.make_decay(decay)
        steps = jnp.exp(jax.random.uniform(step, self.decay_shape, minval=jnp.log(1e-3), maxval=jnp.log(0.1)))
        rate_N = jax.random.uniform(a, (self.num_heads,), minval=self.least_rate, maxval=16)
        self.a_log = nnx.Param(jnp.log(rate_N), optim="no_decay")
        self.step_bias = nnx.Param(steps + jnp.log(-jnp.expm1(-steps)), optim="no_decay")  # softplus of it is `steps`

    @property
    def decay_shape(self) -> tuple[int, int]:
        """Return the shape [N, G] of a token's decays."""
        return self.num_heads, 1

    def make_decay(self, key: Array) -> nnx.Module:
        """Return the map from x to the decays before the softplus."""
        return Linear(key, self.width, self.num_heads)

    def rates(self, x_BTD):
        """Return the decays [B, T, N, G] and beta."""
        logit_BTNG = self.decay(x_BTD).astype(jnp.float32).reshape(*x_BTD.shape[:2], *self.decay_shape)
        rate_N1 = jnp.exp(jnp.minimum(self.a_log[...], MAX_A_LOG))[:, None]
        decay = -rate_N1 * jax.nn.softplus(logit_BTNG + self.step_bias[...])
        return decay, super().rates(x_BTD)[1]


class KDA(GatedDeltaNet):
    """Kimi Delta Attention: a decay per key dimension. The rank of both low-rank maps is the value dim."""

    least_rate = 1.0
    activation = staticmethod(jax.nn.sigmoid)

    @property
    def decay_shape(self) -> tuple[int, int]:
        """Return the shape [N, K] of a token's decays."""
        return self.num_heads, self.key_dim

    def make_decay(self, key: Array) -> nnx.Module:
        """Return the low-rank map from x to the decays before the softplus."""
        return LowRank(key, self.width, self.value_dim, self.num_heads * self.key_dim)

    def make_gate(self, key: Array, inner: int) -> nnx.Module:
        """Return the low-rank map from x to the logits of the output gate."""
        return LowRank(key, self.width, self.value_dim, inner, bias=True)
