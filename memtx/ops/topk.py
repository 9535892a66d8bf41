"""Top-k search over a bank of keys: exact or approximate, in blocks of entries, on each device for its own rows.

    score_j = q . k_j                    ("dot")
    score_j = q . k_j - |k_j|^2 / 2      ("l2": the nearest in Euclidean distance has the highest score)

*Blocks.* Scores of TILE queries and `block` entries exist at a time, never [B, N, T, M]; a block in which no query may see an
entry is skipped at run time, so an empty bank costs nothing. Within a block, the k best are in the k groups of entries with the
highest maxima, and only those are searched: both the groups and they in the same way, until rows are short.

*Approximate.* Entry j falls into bucket j mod L and only each bucket's best survives, then the best k of those: a maximum
instead of a selection, which suits a TPU. The entry of rank r is lost if one of the r - 1 better ones shares its bucket, so
the expected recall is about 1 - (k - 1) / 2L, which gives L (Chern et al. 2022, arXiv 2206.14286; meliad has L = k).

*Devices.* A partitioner gathers what `lax.top_k` selects from, even where only the rows are divided. So on a mesh it runs
under `shard_map`: rows over `data`; entries, if asked, over another axis: local top-k, then top-k of all devices' winners,
which is exact and moves k entries per device.

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

from memtx.ops.rows import SHORT, select

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
    """The k best entries of each query -> (score_BTNR descending, index_BTNR); nothing is differentiated.

    A query sees the entries with id >= 0 and first <= id < end. Where fewer than k can be seen, the rest of the scores are
    -inf. Of equal scores the lower index comes first. recall: 1 is exact, less is approximate. entries_axis: the mesh axis
    over which the entries are divided.
    """
    if not 0 < k <= key_BMKH.shape[1]:
        raise ValueError(f"k={k} must be between 1 and the {key_BMKH.shape[1]} entries of the bank")
    args = lax.stop_gradient((q_BTNH, key_BMKH, id_BM, first_BT, end_BT))
    local = partial(_tiles, k=k, metric=metric, recall=recall, block=block)
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
    """The share of the exact neighbours that were found, as a scalar; negative ids are no neighbours."""
    hit_TR = (exact_TR[..., :, None] == found_TR[..., None, :]).any(-1) & (exact_TR >= 0)
    return hit_TR.sum(dtype=jnp.int32) / jnp.maximum((exact_TR >= 0).sum(dtype=jnp.int32), 1)


def buckets(k: int, target: float) -> int:
    """L such that 1 - (k - 1) / 2L reaches the target."""
    return max(k, math.ceil((k - 1) / (2 * (1 - target)) - 1e-6))


def _tiles(q_BTNH, key_BMKH, id_BM, first_BT, end_BT, **how):
    """Some queries after the others."""
    shape = q_BTNH.shape
    if key_BMKH.shape[0] == 1:  # one bank for all streams: their queries stand in one row
        q_BTNH, first_BT, end_BT = (a.reshape(1, -1, *a.shape[2:]) for a in (q_BTNH, first_BT, end_BT))
    rows, time = first_BT.shape
    size = min(TILE, time)

    def cut(a_BT):
        a_BT = jnp.pad(a_BT, [(0, 0), (0, -time % size), *[(0, 0)] * (a_BT.ndim - 2)])  # first = end = 0: sees nothing
        return a_BT.reshape(rows, -1, size, *a_BT.shape[2:]).swapaxes(0, 1)

    def join(a):
        return a.swapaxes(0, 1).reshape(rows, -1, *a.shape[3:])[:, :time].reshape(*shape[:3], -1)

    tiles = cut(q_BTNH), cut(first_BT), cut(end_BT)
    score, index = map(join, lax.map(lambda tile: _search(tile[0], key_BMKH, id_BM, *tile[1:], **how), tiles))
    return score, index


def _search(q_BTNH, key_BMKH, id_BM, first_BT, end_BT, *, k, metric, recall, block):
    shape, (entries, heads, head_dim) = q_BTNH.shape, key_BMKH.shape[1:]
    q_BKGTH = q_BTNH.reshape(*q_BTNH.shape[:2], heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    size = -(-entries // -(-entries // block))  # blocks of one size
    size = min(-(-size // group(size, k)) * group(size, k), entries)
    slots = buckets(k, recall) if recall < 1 else entries
    approximate = slots < entries
    if approximate:
        size = min(-(-size // slots) * slots, entries // slots * slots)
    width = slots if approximate else k

    def step(best, begin):
        start = jnp.minimum(begin, entries - size)  # the last block overlaps the one before, and does not count it twice
        key, id_ = (lax.dynamic_slice_in_dim(a, start, size, 1) for a in (key_BMKH, id_BM))
        fresh = (id_ >= 0) & (start + jnp.arange(size) >= begin)
        live = fresh & (id_ >= first_BT.min(1)[:, None]) & (id_ < end_BT.max(1)[:, None])

        def work(best):
            key_ = key.astype(q_BKGTH.dtype)
            rows_BKRH = q_BKGTH.reshape(*q_BKGTH.shape[:2], -1, head_dim)  # two axes of a batch first: a plain matmul for each
            score = jnp.einsum("BKRH,BKMH->BKRM", rows_BKRH, key_.swapaxes(1, 2), preferred_element_type=jnp.float32)
            score = score.reshape(*q_BKGTH.shape[:-1], size)
            if metric == "l2":
                length = 0.5 * jnp.square(key_.astype(jnp.float32)).sum(-1)
                score = score - length.transpose(0, 2, 1)[:, :, None, None]
            seen = fresh[:, None] & (id_[:, None] >= first_BT[..., None]) & (id_[:, None] < end_BT[..., None])
            score = jnp.where(seen[:, None, None], score, -jnp.inf)
            if approximate:
                score = score.reshape(*score.shape[:-1], -1, slots)
                top = score.max(-2, keepdims=True)
                row = lax.broadcasted_iota(jnp.int32, score.shape, score.ndim - 2)
                row = jnp.where(score == top, row, LAST).min(-2)  # argmax, in two passes that a CPU vectorises
                index, score = start + row * slots + jnp.arange(slots), top.squeeze(-2)
                return jnp.maximum(best[0], score), jnp.where(score > best[0], index, best[1])
            score, index = _top(score, min(k, size))
            return _best(jnp.concatenate([best[0], score], -1), jnp.concatenate([best[1], index + start], -1), k)

        return lax.cond(live.any(), work, lambda best: best, best), None

    none = (*q_BKGTH.shape[:-1], width)
    best = jnp.full(none, -jnp.inf), jnp.zeros(none, jnp.int32)
    best, _ = lax.scan(step, best, jnp.arange(0, entries, size, dtype=jnp.int32))
    best = _best(*best, k) if approximate else best
    score, index = (a.transpose(0, 3, 1, 2, 4).reshape(*shape[:3], k) for a in best)
    return score, index


def group(size: int, k: int) -> int:
    """Entries of a group, a power of 2, so that there are about as many groups as entries in the k best ones."""
    return 1 << max(0, round(math.log2(size / k) / 2))


def _top(score: Array, k: int) -> tuple[Array, Array]:
    """`lax.top_k`, of long rows by groups. Of equal scores the lower index still comes first: so it does among groups, and
    the chosen ones are put in order."""
    size = score.shape[-1]
    each = math.gcd(group(size, k), size)
    if size <= SHORT or each == 1 or size // each < 2 * k:
        return select(score, k)
    parts = score.reshape(*score.shape[:-1], -1, each)
    chosen = _in_order(_top(parts.max(-1), k)[1])
    score = jnp.take_along_axis(parts, chosen[..., None], -2).reshape(*score.shape[:-1], -1)
    score, place = _top(score, k)
    return score, jnp.take_along_axis(chosen, place // each, -1) * each + place % each


def _in_order(index: Array) -> Array:
    """Rows of integers below 2^24, sorted; `select` takes all cores of a CPU for it, `sort` one."""
    return -select(-index.astype(jnp.float32), index.shape[-1])[0].astype(jnp.int32)


def _best(score: Array, index: Array, k: int) -> tuple[Array, Array]:
    score, place = select(score, k)
    return score, jnp.take_along_axis(index, place, -1)
