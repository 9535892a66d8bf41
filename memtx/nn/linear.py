"""Linear maps and norms: modules that hold float32 parameters and compute in x's dtype.

B stream, T time, D model, E features out.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array


def dense(x_BTD: Array, w_DE: Array) -> Array:
    """x @ w as a plain 2-D dot.

    Behind a 3-D dot XLA's CPU backend transposes the whole cotangent for dW; a 2-D dot trains about 1.5 times as fast.
    """
    y = x_BTD.reshape(-1, x_BTD.shape[-1]) @ w_DE.astype(x_BTD.dtype)
    return y.reshape(*x_BTD.shape[:-1], w_DE.shape[-1])


def normal(key: Array, shape: tuple[int, ...], scale: float | None = None, **metadata) -> nnx.Param:
    """A float32 parameter ~ N(0, scale^2); scale defaults to fan_in^-1/2. Metadata: `optim="no_decay"`."""
    deviation = shape[0] ** -0.5 if scale is None else scale
    return nnx.Param(deviation * jax.random.normal(key, shape), **metadata)


class Linear(nnx.Module):
    def __init__(self, key: Array, d_in: int, d_out: int, *, bias: bool = False, scale: float | None = None):
        self.w = normal(key, (d_in, d_out), scale)
        self.b = nnx.Param(jnp.zeros(d_out), optim="no_decay") if bias else None

    def __call__(self, x_BTD: Array) -> Array:
        y = dense(x_BTD, self.w[...])
        return y if self.b is None else y + self.b[...].astype(y.dtype)

    def halves(self, x_BTD: Array) -> tuple[Array, Array]:
        """The first and the second half of the features, each by a dot of its own: cut from one, their gradients would be
        joined again."""
        ys = [dense(x_BTD, w) for w in jnp.split(self.w[...], 2, -1)]
        if self.b is not None:
            ys = [y + b.astype(y.dtype) for y, b in zip(ys, jnp.split(self.b[...], 2), strict=True)]
        return ys[0], ys[1]


class Norm(nnx.Module):
    """RMSNorm ("rms") or LayerNorm ("layer", with a bias), computed in float32."""

    def __init__(self, kind: str, width: int, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(width), optim="no_decay")
        self.bias = nnx.Param(jnp.zeros(width), optim="no_decay") if kind == "layer" else None

    def __call__(self, x_BTD: Array) -> Array:
        # in two dimensions: of one stream, the scale's gradient, a sum over [1, T, D], takes XLA on a CPU 45 times as long
        x = x_BTD.astype(jnp.float32).reshape(-1, x_BTD.shape[-1])
        if self.bias is not None:
            x = x - x.mean(-1, keepdims=True)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon) * self.scale[...]
        if self.bias is not None:
            x = x + self.bias[...]
        return x.astype(x_BTD.dtype).reshape(x_BTD.shape)


def unit(x: Array) -> Array:
    """x / |x| over the last axis, computed in float32; 0 stays 0."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide * wide).sum(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def elu_plus_one(x: Array) -> Array:
    """elu(x) + 1 > 0, a feature map; by exp, since the 1 takes away what expm1 is precise in, and a CPU is slow at it."""
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x)))


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout; key = None is deterministic."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)
