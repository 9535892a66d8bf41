"""Top-k search over a bank of keys: exact or approximate, in blocks of entries, with each device searching for its own rows.

    score_j = q . k_j                    ("dot")
    score_j = q . k_j - |k_j|^2 / 2      ("l2": the nearest in Euclidean distance has the highest score)

*Blocks.* Only the scores of TILE queries and `block` entries exist at a time, never [B, N, T, M]. A block is skipped at run
time if no query may see any of its entries, so an empty bank costs nothing.

*Approximate.* Entry j is in bucket j mod L. Only the best of each bucket is kept, and then the best k of those. This takes a
maximum instead of a selection, which suits a TPU. The entry of rank r is lost if one of the r - 1 better ones shares its
bucket, so the expected recall is about 1 - (k - 1) / 2L, which determines L (Chern et al. 2022, arXiv 2206.14286; meliad has
L = k).

*Devices.* A partitioner gathers the operand of `lax.top_k`, even if only the rows are divided. On a mesh the search therefore
runs under `shard_map`, with rows over `data`. Entries may be divided over another axis: local top-k, then top-k of all devices'
results, which is exact and moves k entries per device.

B stream (or 1: a bank that all streams share), T queries, M entries, N query heads, K key heads, G = N / K, H head dim,
R = k neighbours, L buckets.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from memtx.ops.select import group, select

BLOCK, TILE = 32_768, 128
LAST = jnp.iinfo(jnp.int32).max


def search(
    q_BTNH: Array,
    key_BMKH: Array,
    id_BM: Array,
    first_BT: Array,
    end_BT: Array,
    k: int,
    *,
    metric: str = "dot",
    recall: float = 1.0,
    block: int = BLOCK,
    entries_axis: str | None = None,
) -> tuple[Array, Array]:
    """Return the k best entries of each query: score_BTNR, descending, and index_BTNR. No gradient passes.

    A query sees the entries with id >= 0 and first <= id < end. If it sees fewer than k, the remaining scores are -inf. Of
    equal scores the lower index comes first.

    recall: 1 is exact, less is approximate. entries_axis: the mesh axis over which the entries are divided.
    Raises ValueError unless 0 < k <= M.
    """
    if not 0 < k <= key_BMKH.shape[1]:
        raise ValueError(f"k={k} must be between 1 and the {key_BMKH.shape[1]} entries of the bank")
    args = lax.stop_gradient((q_BTNH, key_BMKH, id_BM, first_BT, end_BT))
    local = partial(_blocks, k=k, metric=metric, recall=recall, block=block)
    mesh = next((m for a in args if not (m := jax.typeof(a).sharding.mesh).empty), None)
    if mesh is None:
        return local(*args)
    divided = "data" in mesh.shape and q_BTNH.shape[0] % mesh.shape["data"] == 0 and entries_axis != "data"
    rows = "data" if divided else None
    bank = P(None if key_BMKH.shape[0] == 1 else rows, entries_axis)

    def on_device(*args):
        score, index = local(*args)
        if entries_axis is None:
            return score, index
        index = index + lax.axis_index(entries_axis) * args[1].shape[1]
        score, index = (lax.all_gather(a, entries_axis, axis=-1, tiled=True) for a in (score, index))
        return _best(score, index, k)

    specs = (P(rows), bank, bank, P(rows), P(rows))
    # Per-device control flow: a device whose rows see nothing skips its blocks.
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=P(rows), check_vma=False)(*args)


def measured_recall(found_TR: Array, exact_TR: Array) -> Array:
    """Return the share of the exact neighbours that were found, a scalar. Negative ids are not neighbours."""
    hit_TR = (exact_TR[..., :, None] == found_TR[..., None, :]).any(-1) & (exact_TR >= 0)
    return hit_TR.sum(dtype=jnp.int32) / jnp.maximum((exact_TR >= 0).sum(dtype=jnp.int32), 1)


def buckets(k: int, target: float) -> int:
    """Return the smallest L >= k with 1 - (k - 1) / 2L >= target."""
    return max(k, math.ceil((k - 1) / (2 * (1 - target)) - 1e-6))


def _blocks(q_BTNH, key_BMKH, id_BM, first_BT, end_BT, *, k, metric, recall, block):
    """Search one block of entries after the other, and in each block one tile of queries after the other."""
    shape, (entries, heads, head_dim) = q_BTNH.shape, key_BMKH.shape[1:]
    if len(key_BMKH) == 1:  # one bank for all streams: their queries are one row
        q_BTNH, first_BT, end_BT = (a.reshape(1, -1, *a.shape[2:]) for a in (q_BTNH, first_BT, end_BT))
    rows, time = first_BT.shape
    tile = min(TILE, time)

    def cut(a_BT):
        a_BT = jnp.pad(a_BT, [(0, 0), (0, -time % tile), *[(0, 0)] * (a_BT.ndim - 2)], mode="edge")
        return a_BT.reshape(rows, -1, tile, *a_BT.shape[2:]).swapaxes(0, 1)

    queries = cut(q_BTNH.reshape(rows, time, heads, -1, head_dim)).transpose(0, 1, 3, 4, 2, 5)
    tiles = queries, cut(first_BT), cut(end_BT)
    size = -(-entries // -(-entries // block))  # equal blocks
    size = min(-(-size // group(size, k)) * group(size, k), entries)
    slots = buckets(k, recall) if recall < 1 else entries
    approximate = slots < entries
    if approximate:
        size = min(-(-size // slots) * slots, entries // slots * slots)

    def step(best, begin):
        start = jnp.minimum(begin, entries - size)  # the last block overlaps the one before
        key, id_ = (lax.dynamic_slice_in_dim(a, start, size, 1) for a in (key_BMKH, id_BM))
        id_ = jnp.where(start + jnp.arange(size) >= begin, id_, -1)

        def of_tile(args):
            (q_BKGTH, first, end), best = args
            score = _scores(q_BKGTH, first, end, key.astype(q_BKGTH.dtype).swapaxes(1, 2), id_)
            if metric == "l2":
                score = score - 0.5 * jnp.square(key.astype(jnp.float32)).sum(-1).transpose(0, 2, 1)[:, :, None, None]
            if approximate:
                return _best_of_buckets(best, score, start, slots)
            score, index = select(score, min(k, size))
            if size == entries:
                return score, index
            return _best(jnp.concatenate([best[0], score], -1), jnp.concatenate([best[1], index + start], -1), k)

        live = _seen(id_, first_BT.min(1, keepdims=True), end_BT.max(1, keepdims=True)).any()
        return lax.cond(live, lambda best: lax.map(of_tile, (tiles, best)), lambda best: best, best), None

    none = (*queries.shape[:-1], slots if approximate else k)
    best = jnp.full(none, -jnp.inf), jnp.zeros(none, jnp.int32)
    best, _ = lax.scan(step, best, jnp.arange(0, entries, size, dtype=jnp.int32))
    best = _best(*best, k) if approximate else best

    def join(a):
        return a.transpose(1, 0, 4, 2, 3, 5).reshape(rows, -1, shape[2], k)[:, :time].reshape(*shape[:3], k)

    score, index = map(join, best)
    return score, index


def _scores(q_BKGTH, first_BT, end_BT, key_BKMH, id_BM) -> Array:
    """Return q . k in float32, [B, K, G, T, M], with -inf for entries that are not seen.

    XLA's CPU backend does not fuse the mask into the product, and a pass over the scores takes as long as the product. On a
    CPU, if all queries of a row see the same entries, the mask is therefore one more feature: 0 or -inf in the keys, and 1 in
    the queries.
    """
    shape = (*q_BKGTH.shape[:-1], key_BKMH.shape[2])

    def dot(q_BKGTH, key_BKMH):
        """Return [B * K, G * T, M] from one plain product per batch entry and key head."""
        q, key = q_BKGTH.reshape(-1, math.prod(shape[2:4]), q_BKGTH.shape[-1]), key_BKMH.reshape(-1, *key_BKMH.shape[2:])
        return jnp.einsum("BRH,BMH->BRM", q, key, preferred_element_type=jnp.float32)

    def mask_after():
        seen_BTM = _seen(id_BM[:, None], first_BT[..., None], end_BT[..., None])
        score = dot(q_BKGTH, key_BKMH)
        return jnp.where(seen_BTM[:, None, None], score.reshape(shape), -jnp.inf).reshape(score.shape)

    def mask_within():
        mask_BM = jnp.where(_seen(id_BM, first_BT[:, :1], end_BT[:, :1]), 0, -jnp.inf).astype(key_BKMH.dtype)
        mask_BKM1 = jnp.broadcast_to(mask_BM[:, None, :, None], (*key_BKMH.shape[:-1], 1))
        one = jnp.ones_like(q_BKGTH[..., :1])
        return dot(jnp.concatenate([q_BKGTH, one], -1), jnp.concatenate([key_BKMH, mask_BKM1], -1))

    def on_cpu():
        alike = (first_BT == first_BT[:, :1]).all() & (end_BT == end_BT[:, :1]).all()
        return lax.cond(alike, mask_within, mask_after)

    return lax.platform_dependent(cpu=on_cpu, default=mask_after).reshape(shape)


def _seen(id_: Array, first: Array, end: Array) -> Array:
    return (id_ >= 0) & (id_ >= first) & (id_ < end)


def _best_of_buckets(best, score, start, slots):
    score = score.reshape(*score.shape[:-1], -1, slots)
    top = score.max(-2, keepdims=True)
    row = lax.broadcasted_iota(jnp.int32, score.shape, score.ndim - 2)
    row = jnp.where(score == top, row, LAST).min(-2)  # argmax, in two passes that a CPU vectorises
    index, score = start + row * slots + jnp.arange(slots), top.squeeze(-2)
    return jnp.maximum(best[0], score), jnp.where(score > best[0], index, best[1])


def _best(score: Array, index: Array, k: int) -> tuple[Array, Array]:
    score, place = select(score, k)
    return score, jnp.take_along_axis(index, place, -1)
