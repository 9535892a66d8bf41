"""Matrix products of 16-bit operands with float32 sums, in the forward and in the backward pass.

JAX's rule for gradients would multiply 16-bit operands with a float32 cotangent, which takes an accelerator twice as long or
more, or it would round the sums of a weight's gradient to 16 bits. Here the cotangent is rounded to the dtype of the operands,
and the gradient of a float32 weight is summed in float32. With float32 operands nothing is rounded.

N tokens, D features in, E features out.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dense(x_ND: Array, w_DE: Array, dtype: DTypeLike) -> Array:
    """Return x w in `dtype`, [N, E]. The weight is rounded to x's dtype."""
    return jnp.dot(x_ND, w_DE.astype(x_ND.dtype), preferred_element_type=jnp.float32).astype(dtype)


def _dense_forward(x_ND, w_DE, dtype):
    return dense(x_ND, w_DE, dtype), (x_ND, w_DE)


def _dense_backward(dtype, saved, dy_NE):
    x_ND, w_DE = saved
    dy_NE = dy_NE.astype(x_ND.dtype)
    dw_DE = jnp.dot(x_ND.T, dy_NE, preferred_element_type=jnp.float32)
    return jnp.dot(dy_NE, w_DE.astype(x_ND.dtype).T), dw_DE.astype(w_DE.dtype)


dense.defvjp(_dense_forward, _dense_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum(spec: str, x: Array, y: Array) -> Array:
    """Return the einsum of two arrays of one dtype, in float32."""
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)


def _einsum_backward(spec, saved, dz):
    x, y = saved
    return jax.vjp(partial(jnp.einsum, spec), x, y)[1](dz.astype(jnp.result_type(x, y)))


einsum.defvjp(lambda spec, x, y: (einsum(spec, x, y), (x, y)), _einsum_backward)
