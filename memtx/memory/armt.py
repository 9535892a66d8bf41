"""Associative RMT: each layer has a matrix that memory tokens write to, by the delta rule, at the end of a segment.

    in = [x ; mem]                          a segment of n tokens, then M learned tokens, the same in every segment
    read    h <- h + A^T phi(h Wq) / (z . phi(h Wq) + e)             before each layer, at every token
    write   k = phi(m Wk), v = m Wv, beta = sig(m Wb + b)            m: the layer's outputs for the memory tokens
            gamma = SG clip(1 - (z . k + e) / (|k|^2 + e), 0, 1)     how much of k is new; 1 at the first write
            A <- A + sum_m beta k (v - A^T k / (z . k + e))^T ;  z <- z + sum_m gamma k
    phi     DPFP: r = [relu u ; relu -u] ;  phi(u) = [r * roll(r, 1) ; ... ; r * roll(r, nu)] / its length       e = 1e-5

All M tokens of a segment write against the A from before it. Wv starts at 0, so that memory does nothing at first. As in RMT
(rmt.py), whose body this is, the layers' own memory is wiped at each segment; A and z stay.
write=False: read only, without memory tokens, as the paper generates text.

What is differentiable: everything but gamma, through A and z as far back as the caller's `detach` lets it; each segment is
recomputed in the backward pass.

phi has length 1, as in the authors' later code: with keys of any length, as in their first, writes do not always overwrite,
and values can explode over many segments.

Deviations: only whole segments are written, wherever calls are cut; layers are causal; A is cleared at the start of a document.

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
from memtx.memory.rmt import Segmented
from memtx.nn.linear import Linear
from memtx.ops.chunks import Place
from memtx.ops.rows import take

EPSILON, TINY = 1e-5, 1e-12
START, END = "armt/start_B", "armt/end_B"  # how the body tells its layers where rows start and end a segment,
WHOLE = "armt/whole"  # and that all do


@pytree
class Matrix:
    layer: State
    a_BFD: Array
    z_BF: Array


class Associative(nnx.Module):
    """A layer with a matrix memory before it."""

    def __init__(self, config: "ARMT.Config", dims: Dims, key: Array, layer: Layer):
        q, k, v, beta = jax.random.split(key, 4)
        self.config, self.width, self.layer = config, dims.width, layer
        self.q, self.k = Linear(q, dims.width, config.features), Linear(k, dims.width, config.features)
        self.v = Linear(v, dims.width, dims.width, scale=config.value_scale)
        self.beta = Linear(beta, dims.width, 1, bias=True)

    def init_state(self, batch_size: int) -> Matrix:
        features = 2 * self.config.nu * self.config.features
        empty = jnp.zeros((batch_size, features, self.width))
        return Matrix(self.layer.init_state(batch_size), empty, jnp.zeros((batch_size, features)))

    def __call__(self, x_BTD: Array, state: Matrix, seg: Segment, *, key: Array | None = None):
        layer = state.layer
        if WHOLE in seg.shared:
            layer = self.layer.init_state(len(x_BTD))
        elif START in seg.shared:
            layer = reset(self.layer, layer, seg.shared[START])
        read = recall(state, dpfp(self.q(x_BTD), self.config.nu))[0]
        y_BTD, layer = self.layer(x_BTD + read.astype(x_BTD.dtype), layer, seg, key=key)
        if WHOLE in seg.shared:
            layer = lax.stop_gradient(layer)  # nobody will read it: no gradient is made
        state = Matrix(layer, state.a_BFD, state.z_BF)
        if END not in seg.shared or not self.config.write:
            return y_BTD, state
        last_BM = seg.length_B[:, None] - self.config.memory + jnp.arange(self.config.memory)
        return y_BTD, self.write(state, take(y_BTD, jnp.maximum(last_BM, 0)), seg.shared[END])

    def write(self, state: Matrix, m_BMD: Array, end_B: Array) -> Matrix:
        k_BMF = dpfp(self.k(m_BMD), self.config.nu)
        v_BMD, beta_BM1 = self.v(m_BMD).astype(jnp.float32), jax.nn.sigmoid(self.beta(m_BMD).astype(jnp.float32))
        known_BMD, z_k_BM1 = recall(state, k_BMF)
        new = 1 - z_k_BM1 / ((k_BMF**2).sum(-1, keepdims=True) + EPSILON)
        first_B = (state.z_BF == 0).all(-1)  # features are not negative: z is 0 until something is written
        gamma_BM1 = lax.stop_gradient(jnp.where(first_B[:, None, None], 1.0, jnp.clip(new, 0, 1)))
        a = state.a_BFD + jnp.einsum("BMF,BMD->BFD", k_BMF, beta_BM1 * (v_BMD - known_BMD))
        z = state.z_BF + (gamma_BM1 * k_BMF).sum(1)
        keep = lambda new, old, end: jnp.where(end, new, old)  # noqa: E731
        return Matrix(state.layer, keep(a, state.a_BFD, end_B[:, None, None]), keep(z, state.z_BF, end_B[:, None]))


def dpfp(u_BTE: Array, nu: int) -> Array:
    """Deterministic parameter-free projection: non-negative features [B, T, 2 nu E] of length 1 (or 0), in float32."""
    u = u_BTE.astype(jnp.float32)
    r = jax.nn.relu(jnp.concatenate([u, -u], -1))
    phi = jnp.concatenate([r * jnp.roll(r, j, -1) for j in range(1, nu + 1)], -1)
    return phi * lax.rsqrt((phi**2).sum(-1, keepdims=True) + TINY)


def recall(state: Matrix, key_BTF: Array) -> tuple[Array, Array]:
    """What the matrix holds under these keys [B, T, D], and z . key + e [B, T, 1]."""
    z_k_BT1 = jnp.einsum("BTF,BF->BT", key_BTF, state.z_BF)[..., None] + EPSILON
    return jnp.einsum("BTF,BFD->BTD", key_BTF, state.a_BFD) / z_k_BT1, z_k_BT1


class ARMT(Segmented):
    """Body site: x_BTD -> x_BTD around `body`, whose layers `wrap_layer` has given matrices."""

    kind = "fixed matrices"
    entries = False

    @dataclasses.dataclass(frozen=True)
    class Config(Segmented.Config):
        features: int = 64  # before DPFP makes 2 nu times as many
        nu: int = 3  # rolls of DPFP
        value_scale: float = 0.0  # deviation of Wv at first; 0: the paper's
        write: bool = True  # False: read only

        def __post_init__(self):
            super().__post_init__()
            positive(self, "features", "nu")

    tiny = (Config(segment=4, memory=2, remat=False, features=3, nu=2, value_scale=0.3),)

    @classmethod
    def wrap_layer(cls, config: Config, dims: Dims, key: Array, layer: Layer) -> Associative:
        return Associative(config, dims, key, layer)

    def __init__(self, config: Config, dims: Dims, key: Array, body: Layer):
        super().__init__(config, dims, key, body)
        self.before, self.after = 0, config.memory if config.write else 0

    def begin(self, inner: Segment, body: State, place: Place | None) -> tuple[Segment, State]:
        """The layers themselves forget the segment before, since their matrices stay."""
        if place is None:
            all_B = jnp.ones(len(inner.length_B), bool)
            told = {WHOLE: all_B, END: all_B}
        else:
            told = {START: place.begins_B, END: place.complete_B}
        return inner.replace(shared={**inner.shared, **told}), body
