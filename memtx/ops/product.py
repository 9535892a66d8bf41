"""Exact top-k of a list, and of all n^2 sums of two lists of n numbers, which makes a table of n^2 entries cheap to search.

Only the k best numbers of each list can give one of the k best sums left_i + right_j. Sort them, and rank them from 1. A pair
with ranks a and b is no better than the a b pairs with ranks up to a and b. So only pairs with a b <= k are needed: k ln k
candidates instead of n^2.

N queries (any leading axes), M entries of a list, k results.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from memtx.ops.per_device import per_device
from memtx.ops.select import select

_top_k = per_device("n m -> n k, n k")(select)


def top_k(x_NM: Array, k: int) -> tuple[Array, Array]:
    """Return the k largest of the last axis, sorted, and their indices.

    Unlike `lax.top_k`, it lets each device of a mesh sort its own rows. It is not differentiable.
    """
    rows = lax.stop_gradient(x_NM).reshape(-1, x_NM.shape[-1])
    value, index = _top_k(rows, k)
    return value.reshape(*x_NM.shape[:-1], k), index.reshape(*x_NM.shape[:-1], k)


def product_top_k(left_NM: Array, right_NM: Array, k: int) -> tuple[Array, Array]:
    """Return the k largest left_i + right_j over all M^2 pairs, best first: score_Nk, and i * M + j as int32.

    It is exact and needs k <= M^2. The gradient of a score goes to its two terms.
    """
    size = left_NM.shape[-1]
    side = min(k, size)
    (left, i), (right, j) = top_k(left_NM, side), top_k(right_NM, side)
    rank = np.arange(1, side + 1)
    product = np.multiply.outer(rank, rank)
    a, b = np.nonzero(product <= k)
    likely = np.argsort(product[a, b], kind="stable")  # of equal sums, the pair with better ranks comes first
    a, b = a[likely], b[likely]
    place_Nk = top_k(left[..., a] + right[..., b], k)[1]
    i, j = (jnp.take_along_axis(x, jnp.asarray(ranks)[place_Nk], -1) for x, ranks in ((i, a), (j, b)))
    score_Nk = jnp.take_along_axis(left_NM, i, -1) + jnp.take_along_axis(right_NM, j, -1)
    return score_Nk, i * size + j
