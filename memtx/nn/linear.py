"""Linear maps and norms: modules with float32 parameters that compute in x's dtype.

B stream, T time, D model, E features out.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from memtx.ops import dot
from memtx.ops.context import is_divided


def dense(x_BTD: Array, w_DE: Array, dtype: DTypeLike | None = None) -> Array:
    """Return x @ w in `dtype`, by default x's."""
    return dot.dense(flat(x_BTD), w_DE, dtype or x_BTD.dtype).reshape(*x_BTD.shape[:-1], w_DE.shape[-1])


def flat(x_BTD: Array) -> Array:
    """Return x with a single axis of tokens, or x if devices divide its tokens, which XLA would gather for this.

    XLA's CPU backend is slow at gradients with two axes: it transposes a whole cotangent, or sums over [1, T, D].
    """
    return x_BTD if is_divided(x_BTD) else x_BTD.reshape(-1, x_BTD.shape[-1])


def normal(key: Array, shape: tuple[int, ...], scale: float | None = None, **metadata) -> nnx.Param:
    """Draw a float32 parameter ~ N(0, scale^2). By default scale is fan_in^-1/2.

    metadata: declarations that training reads, such as `optim="no_decay"` or `axes=(None, "model")`, the mesh axes of the last
    dimensions.
    """
    deviation = shape[0] ** -0.5 if scale is None else scale
    return nnx.Param(deviation * jax.random.normal(key, shape), **metadata)


class Linear(nnx.Module):
    """y_BTE = x_BTD w_DE + b_E.

    shard: the side of w that tensor parallelism divides, "out" or "in". Maps back into the residual stream declare "in", so
    that a pair of maps needs one sum over devices.
    """

    def __init__(
        self, key: Array, d_in: int, d_out: int, *, bias: bool = False, scale: float | None = None, shard: str = "out"
    ):
        self.w = normal(key, (d_in, d_out), scale, axes={"out": (None, "model"), "in": ("model", None)}[shard])
        self.b = nnx.Param(jnp.zeros(d_out), optim="no_decay", axes=("model",) if shard == "out" else ()) if bias else None

    def __call__(self, x_BTD: Array) -> Array:
        """Return y_BTE in x's dtype."""
        y = dense(x_BTD, self.w[...])
        return y if self.b is None else y + self.b[...].astype(y.dtype)


class Norm(nnx.Module):
    """RMSNorm ("rms") or LayerNorm ("layer", with a bias), computed in float32."""

    def __init__(self, kind: str, width: int, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width), optim="no_decay")
        self.bias = nnx.Param(jnp.zeros(width), optim="no_decay") if kind == "layer" else None

    def __call__(self, x_BTD: Array) -> Array:
        """Return the normalised x in x's dtype."""
        x = flat(x_BTD.astype(jnp.float32))
        if self.bias is not None:
            x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon) * self.scale[...]
        if self.bias is not None:
            x = x + self.bias[...]
        return x.astype(x_BTD.dtype).reshape(x_BTD.shape)


def unit(x: Array) -> Array:
    """Return x / |x| over the last axis, computed in float32. Zero vectors stay zero."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide * wide).sum(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def elu_plus_one(x: Array) -> Array:
    """Return elu(x) + 1 > 0, a feature map.

    It uses exp instead of expm1, which is slow on a CPU. Its extra precision would be lost in adding 1.
    """
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x)))


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Apply inverted dropout. With key=None, return x."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)
