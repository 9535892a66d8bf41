"""Matrix products of 16-bit operands with float32 sums, in the forward and in the backward pass.

JAX's rule for gradients would multiply 16-bit operands with a float32 cotangent, which takes an accelerator twice as long or
more, or it would round the sums of a weight's gradient to 16 bits. Here the cotangent is rounded to the dtype of the operands,
and the gradient of a float32 weight is summed in float32. Between float32 operands nothing is rounded, and JAX's rule is kept.

`exact` is for functions whose float32 products must not be rounded to 16 bits, as a TPU does by default (a GPU rounds to TF32).

N tokens (one axis or more), D features in, E features out.
"""

from collections.abc import Callable
from functools import partial, wraps
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

Given = ParamSpec("Given")
Result = TypeVar("Result")


def exact(f: Callable[Given, Result]) -> Callable[Given, Result]:
    """Return f with float32 products at float32's precision on every platform, in its gradient too."""

    @wraps(f)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with jax.default_matmul_precision("highest"):
            return f(*args, **kwargs)

    return call


def dense(x_ND: Array, w_DE: Array, dtype: DTypeLike) -> Array:
    """Return x w in `dtype`, [N, E]. The weight is rounded to x's dtype."""
    return jnp.dot(x_ND, w_DE).astype(dtype) if x_ND.dtype == w_DE.dtype == jnp.float32 else _dense(x_ND, w_DE, dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x_ND: Array, w_DE: Array, dtype: DTypeLike) -> Array:
    return jnp.dot(x_ND, w_DE.astype(x_ND.dtype), preferred_element_type=jnp.float32).astype(dtype)


def _dense_forward(x_ND, w_DE, dtype):
    return _dense(x_ND, w_DE, dtype), (x_ND, w_DE)


def _dense_backward(dtype, saved, dy_NE):
    x_ND, w_DE = saved
    dy_NE = dy_NE.astype(x_ND.dtype)
    tokens = tuple(range(x_ND.ndim - 1))
    dw_DE = jnp.tensordot(x_ND, dy_NE, (tokens, tokens), preferred_element_type=jnp.float32)
    return jnp.dot(dy_NE, w_DE.astype(x_ND.dtype).T), dw_DE.astype(w_DE.dtype)


_dense.defvjp(_dense_forward, _dense_backward)


def einsum(spec: str, x: Array, y: Array) -> Array:
    """Return the einsum of two arrays of one dtype, in float32."""
    return jnp.einsum(spec, x, y) if x.dtype == jnp.float32 else _einsum(spec, x, y)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum(spec: str, x: Array, y: Array) -> Array:
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _einsum_backward(spec, saved, dz):
    x, y = saved
    return jax.vjp(partial(jnp.einsum, spec), x, y)[1](dz.astype(jnp.result_type(x, y)))


_einsum.defvjp(lambda spec, x, y: (_einsum(spec, x, y), (x, y)), _einsum_backward)
