"""Associative RMT: each layer has a matrix to which memory tokens write at the end of a segment, by the delta rule.

    in = [x ; mem]                          n tokens of a segment, then M learned tokens, the same in every segment
    read    h <- h + A^T phi(h Wq) / (z . phi(h Wq) + e)             before each layer, at every token
    write   k = phi(m Wk), v = m Wv, beta = sig(m Wb + b)            m: the layer's outputs for the memory tokens
            gamma = SG clip(1 - (z . k + e) / (|k|^2 + e), 0, 1)     how much of k is new. 1 at the first write
            A <- A + sum_m beta k (v - A^T k / (z . k + e))^T
            z <- z + sum_m gamma k
    phi     DPFP: r = [relu u ; relu -u],  phi(u) = [r * roll(r, 1) ; ... ; r * roll(r, nu)] / its length        e = 1e-5

All M tokens of a segment compute their errors with the A from before the segment. Wv starts at 0, so the memory does nothing at
first.
As in RMT, the state of the layers inside is reset at the start of each segment (segmented.py). A and z are kept. With
write=False the memory is only read, and there are no memory tokens. The paper generates text in this way.

Everything is differentiable except gamma. Gradients pass through A and z until the caller detaches the state. The backward
pass recomputes each segment (remat).

phi has length 1, as in the authors' later code. With keys of any length, as in their first code, writes do not always
overwrite, and values can explode over many segments.

Deviations: only whole segments are written, independent of calls. Layers are causal. A reset at the start of a document clears
A and z.

Source: Rodkin et al. 2024 (arXiv 2407.04841).
B stream, T time, M memory tokens, F features = 2 nu `features`, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from memtx.core import Dims, Layer, Segment, State, pytree, reset
from memtx.errors import positive
from memtx.memory.inspect import Inspectable
from memtx.memory.segmented import ENDS, STARTS, Segmented
from memtx.nn.linear import Linear
from memtx.ops.chunks import change_rows
from memtx.ops.rows import take

EPSILON, TINY = 1e-5, 1e-12


@pytree
class Matrix(Inspectable):
    """The state of a layer, and the memory A and z."""

    layer: State
    a_BFD: Array
    z_BF: Array

    @property
    def matrices(self) -> tuple[Array]:
        """Return A (see `Inspectable`)."""
        return (self.a_BFD,)


class Associative(nnx.Module):
    """A layer that reads a matrix memory before it, and writes it at the end of a segment."""

    def __init__(self, config: "ARMT.Config", dims: Dims, key: Array, layer: Layer):
        q, k, v, beta = jax.random.split(key, 4)
        self.config, self.width, self.layer = config, dims.width, layer
        self.q, self.k = Linear(q, dims.width, config.features), Linear(k, dims.width, config.features)
        self.v = Linear(v, dims.width, dims.width, scale=config.value_scale)
        self.beta = Linear(beta, dims.width, 1, bias=True)

    def init_state(self, batch_size: int) -> Matrix:
        """Return the layer's empty state, with A and z of 0."""
        features = 2 * self.config.nu * self.config.features
        empty = jnp.zeros((batch_size, features, self.width))
        return Matrix(self.layer.init_state(batch_size), empty, jnp.zeros((batch_size, features)))

    def __call__(self, x_BTD: Array, state: Matrix, seg: Segment, *, key: Array | None = None):
        """Read, call the layer, and write in the rows whose segment ends: x_BTD -> y_BTD."""
        layer = reset(self.layer, state.layer, seg.shared[STARTS])  # the matrix stays
        read = recall(state.a_BFD, state.z_BF, dpfp(self.q(x_BTD), self.config.nu))[0]
        y_BTD, layer = self.layer(x_BTD + read.astype(x_BTD.dtype), layer, seg, key=key)
        a_z = state.a_BFD, state.z_BF
        if self.config.write:
            last_BM = seg.length_B[:, None] - self.config.memory + jnp.arange(self.config.memory)
            m_BMD = take(y_BTD, jnp.maximum(last_BM, 0))
            a_z = change_rows(seg.shared[ENDS], lambda a_z: self.write(a_z, m_BMD), a_z)
        return y_BTD, Matrix(layer, *a_z)

    def write(self, a_z: tuple[Array, Array], m_BMD: Array) -> tuple[Array, Array]:
        """Return A and z after the memory tokens of a segment have been written."""
        a_BFD, z_BF = a_z
        k_BMF = dpfp(self.k(m_BMD), self.config.nu)
        v_BMD, beta_BM1 = self.v(m_BMD).astype(jnp.float32), jax.nn.sigmoid(self.beta(m_BMD).astype(jnp.float32))
        known_BMD, z_k_BM1 = recall(a_BFD, z_BF, k_BMF)
        new = 1 - z_k_BM1 / ((k_BMF**2).sum(-1, keepdims=True) + EPSILON)
        first_B = (z_BF == 0).all(-1)  # features are not negative: z is 0 until something is written
        gamma_BM1 = lax.stop_gradient(jnp.where(first_B[:, None, None], 1.0, jnp.clip(new, 0, 1)))
        a_BFD = a_BFD + jnp.einsum("BMF,BMD->BFD", k_BMF, beta_BM1 * (v_BMD - known_BMD))
        return a_BFD, z_BF + (gamma_BM1 * k_BMF).sum(1)


def dpfp(u_BTE: Array, nu: int) -> Array:
    """Return the deterministic parameter-free projection phi: float32 features [B, T, 2 nu E] >= 0 of length 1 (or 0)."""
    u = u_BTE.astype(jnp.float32)
    r = jax.nn.relu(jnp.concatenate([u, -u], -1))
    phi = jnp.concatenate([r * jnp.roll(r, j, -1) for j in range(1, nu + 1)], -1)
    return phi * lax.rsqrt((phi**2).sum(-1, keepdims=True) + TINY)


def recall(a_BFD: Array, z_BF: Array, key_BTF: Array) -> tuple[Array, Array]:
    """Return the values that the matrix stores for these keys, [B, T, D], and z . key + e, [B, T, 1]."""
    z_k_BT1 = jnp.einsum("BTF,BF->BT", key_BTF, z_BF)[..., None] + EPSILON
    return jnp.einsum("BTF,BFD->BTD", key_BTF, a_BFD) / z_k_BT1, z_k_BT1


class ARMT(Segmented):
    """Body site: x_BTD -> x_BTD around `body`, in which `wrap_layer` gives each layer a matrix."""

    kind = "fixed matrices"
    entries = False

    @dataclasses.dataclass(frozen=True)
    class Config(Segmented.Config):
        """The settings of ARMT."""

        features: int = 64  # features before DPFP, which returns 2 nu times as many
        nu: int = 3  # rolls of DPFP
        value_scale: float = 0.0  # standard deviation of Wv at first. The paper has 0
        write: bool = True  # False: read only

        def __post_init__(self):
            super().__post_init__()
            positive(self, "features", "nu")

    tiny = (Config(segment=4, memory=2, remat=False, features=3, nu=2, value_scale=0.3),)

    @classmethod
    def wrap_layer(cls, config: Config, dims: Dims, key: Array, layer: Layer) -> Associative:
        """Return the layer with a matrix memory."""
        return Associative(config, dims, key, layer)

    def __init__(self, config: Config, dims: Dims, key: Array, body: Layer):
        super().__init__(config, dims, key, body)
        self.around = 0, config.memory if config.write else 0
