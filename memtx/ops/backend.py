"""Arithmetic with a special form for one backend. On other backends each function uses its plain form.

B stream, T queries, M entries, K key heads, G query heads of a key head, H head dim.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from memtx.ops.per_device import mesh_here


def platform(array: Array) -> str:
    """Return the platform for which a function is traced: that of the mesh of its arguments.

    Without a mesh it is that of JAX's default backend, so a program for another device needs a mesh.
    """
    mesh = mesh_here(array)
    device = mesh and mesh.abstract_device
    return device.platform if device else jax.default_backend()


def masked_dot(q_BKGTH: Array, key_BKMH: Array, seen: Callable[[slice], Array], alike: Array) -> Array:
    """Return q . k in float32, [B, K, G, T, M], with -inf for entries that a query does not see.

    seen: returns the entries that a slice of the queries sees, [B, T, M].
    alike: whether all queries of each row see the same entries, a scalar.

    XLA's CPU backend does not fuse the mask into the product, and a pass over the scores takes as long as the product of short
    keys. On a CPU, if `alike`, the mask of short keys is therefore one more feature: 0 or -inf in the keys, and 1 in the
    queries. To copy long keys would take longer than the pass, which is left out if all entries are seen.
    """
    shape = (*q_BKGTH.shape[:-1], key_BKMH.shape[2])

    def dot(q_BKGTH, key_BKMH):
        """Return [B * K, G * T, M] from one plain product per batch entry and key head."""
        q, key = q_BKGTH.reshape(-1, math.prod(shape[2:4]), q_BKGTH.shape[-1]), key_BKMH.reshape(-1, *key_BKMH.shape[2:])
        return jnp.einsum("BRH,BMH->BRM", q, key, preferred_element_type=jnp.float32)

    def mask_after():
        score = dot(q_BKGTH, key_BKMH)
        return jnp.where(seen(slice(None))[:, None, None], score.reshape(shape), -jnp.inf).reshape(score.shape)

    def mask_within():
        mask_BM = jnp.where(seen(slice(1))[:, 0], 0, -jnp.inf).astype(key_BKMH.dtype)
        mask_BKM1 = jnp.broadcast_to(mask_BM[:, None, :, None], (*key_BKMH.shape[:-1], 1))
        one = jnp.ones_like(q_BKGTH[..., :1])
        return dot(jnp.concatenate([q_BKGTH, one], -1), jnp.concatenate([key_BKMH, mask_BKM1], -1))

    def on_cpu():
        if q_BKGTH.shape[-1] < math.prod(shape[2:4]):
            return lax.cond(alike, mask_within, mask_after)
        return lax.cond(alike & seen(slice(1)).all(), lambda: dot(q_BKGTH, key_BKMH), mask_after)

    return lax.platform_dependent(cpu=on_cpu, default=mask_after).reshape(shape)
