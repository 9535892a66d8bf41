"""Top-k search over a bank of keys: exact or approximate, in blocks of entries, divided over the devices of a mesh.

    score_j = q . k_j                    ("dot")
    score_j = q . k_j - |k_j|^2 / 2      ("l2": the nearest in Euclidean distance has the highest score)

`search_plain` is the definition. `search` returns the same and never computes all scores [B, N, T, M] at once.

*Blocks.* Only the scores of TILE queries and `block` entries exist at a time. A block is skipped at run time if no query may
see any of its entries, so an empty bank costs nothing.

*Approximate.* Entry j is in bucket j mod L. Only the best of each bucket is kept, and then the best k of those. This takes a
maximum instead of a selection, which suits a TPU. The entry of rank r is lost if one of the r - 1 better ones shares its
bucket, so the expected recall is about 1 - (k - 1) / 2L, which determines L (Chern et al. 2022, arXiv 2206.14286; meliad has
L = k).

*Devices.* A partitioner gathers the operand of `lax.top_k`, even if only the rows are divided. On a mesh the search therefore
runs under `shard_map`. If each stream has a bank, rows are divided over `data`, and devices do not communicate. If all streams
share one bank, its entries are divided over all devices. Each device searches its own entries for all queries, and then the k
best of the devices are merged, so that queries and results move between devices, but entries do not.

B stream (or 1: a bank that all streams share), T queries, M entries, N query heads, K key heads, G = N / K, H head dim,
R = k neighbours, L buckets, I tiles of queries, C entries of a block.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from memtx.ops.backend import masked_dot
from memtx.ops.dot import exact
from memtx.ops.per_device import mesh_of
from memtx.ops.select import group, select

BLOCK, TILE = 32_768, 128
LAST = jnp.iinfo(jnp.int32).max
Span = tuple[Array, Array]  # first_BT and end_BT: a query sees the entries with id >= 0 and first <= id < end
Found = tuple[Array, Array]  # scores, descending, and indices


def search_plain(q_BTNH: Array, key_BMKH: Array, id_BM: Array, span_BT: Span, k: int, *, metric: str = "dot") -> Found:
    """Return the result of an exact `search` by its definition, a stable sort of all scores."""
    first_BT, end_BT = span_BT
    key_BMNH = jnp.repeat(key_BMKH.astype(jnp.float32), q_BTNH.shape[2] // key_BMKH.shape[2], 2)
    score_BTNM = jnp.einsum("BTNH,BMNH->BTNM", q_BTNH, jnp.broadcast_to(key_BMNH, (len(q_BTNH), *key_BMNH.shape[1:])))
    if metric == "l2":
        score_BTNM -= 0.5 * jnp.square(key_BMNH).sum(-1).swapaxes(1, 2)[:, None]
    seen_BTM = _seen(id_BM[:, None], first_BT[..., None], end_BT[..., None])
    score_BTNM = jnp.where(seen_BTM[:, :, None], score_BTNM, -jnp.inf)
    index_BTNR = jnp.argsort(-score_BTNM, -1, stable=True)[..., :k]
    return jnp.take_along_axis(score_BTNM, index_BTNR, -1), index_BTNR


@exact
def search(
    q_BTNH: Array,
    key_BMKH: Array,
    id_BM: Array,
    span_BT: Span,
    k: int,
    *,
    metric: str = "dot",
    recall: float = 1.0,
    block: int = BLOCK,
) -> Found:
    """Return the k best entries of each query: score_BTNR, descending, and index_BTNR. It is not differentiable.

    If a query sees fewer than k entries, the remaining scores are -inf. If scores are equal, the lower index comes first.

    recall: 1 is exact, less is approximate. Raises ValueError unless 0 < k <= M.
    """
    if not 0 < k <= key_BMKH.shape[1]:
        raise ValueError(f"k={k} must be between 1 and the {key_BMKH.shape[1]} entries of the bank")
    args = lax.stop_gradient((q_BTNH, key_BMKH, id_BM, span_BT))

    def search_here(q_BTNH, key_BMKH, id_BM, span_BT):
        entries = key_BMKH.shape[1]
        return _over_blocks(q_BTNH, key_BMKH, id_BM, span_BT, plan_search(entries, min(k, entries), metric, recall, block))

    mesh = mesh_of(args)
    return search_here(*args) if mesh is None else _over_devices(search_here, mesh, args, k)


def _over_devices(search_here: Callable[..., Found], mesh, args, k: int) -> Found:
    """Run a search on every device of a mesh: on its rows, or on its entries of a bank that all streams share."""
    batch, (banks, entries) = args[0].shape[0], args[1].shape[:2]
    by_row = "data" in mesh.shape and batch % mesh.shape["data"] == 0
    rows = bank = P("data") if by_row else P()
    if banks == 1:
        search_here = _over_entries(search_here, mesh, by_row, entries, k)
        bank = P(None, entry_axes(mesh)) if entries % mesh.size == 0 else P()
    # Per-device control flow: a device whose rows see nothing skips its blocks.
    return jax.shard_map(search_here, mesh=mesh, in_specs=(rows, bank, bank, rows), out_specs=rows, check_vma=False)(*args)


def entry_axes(mesh) -> tuple[str, ...]:
    """Return the axes of a mesh over which the entries of a shared bank are divided: all of them, `data` first."""
    return tuple(sorted(mesh.axis_names, key=lambda name: name != "data"))


def _over_entries(search_here: Callable[..., Found], mesh, by_row: bool, entries: int, k: int) -> Callable[..., Found]:
    """Return the search of one device in a bank that all streams share.

    The device searches its ceil(M / devices) entries for all queries, and merges all devices' results for its rows.
    """
    size = -(-entries // mesh.size)
    axes = entry_axes(mesh)
    others = axes[1:] if by_row else axes

    def results_of_all(a_BTNR: Array) -> Array:
        """Return the results of all devices for the rows of this one, in the order of their entries."""
        k_here = a_BTNR.shape[-1]
        if by_row:
            a_BTNR = lax.all_to_all(a_BTNR, "data", split_axis=0, concat_axis=3, tiled=True)
        parts = a_BTNR.reshape(*a_BTNR.shape[:3], -1, k_here)
        return lax.all_gather(parts, others, axis=4, tiled=True).reshape(*a_BTNR.shape[:3], -1)

    def search_part(q_BTNH, key_1MKH, id_1M, span_BT):
        begin = lax.axis_index(axes) * size
        start = jnp.minimum(begin, entries - size)  # the last parts overlap if the devices do not divide M
        if key_1MKH.shape[1] > size:  # then each device has all entries
            key_1MKH, id_1M = (lax.dynamic_slice_in_dim(a, start, size, 1) for a in (key_1MKH, id_1M))
            id_1M = jnp.where(start + jnp.arange(size) >= begin, id_1M, -1)
        if by_row:
            q_BTNH, span_BT = jax.tree.map(lambda a: lax.all_gather(a, "data", tiled=True), (q_BTNH, span_BT))
        score_BTNR, index_BTNR = search_here(q_BTNH, key_1MKH, id_1M, span_BT)
        return keep_best(results_of_all(score_BTNR), results_of_all(index_BTNR + start), k)

    return search_part


@dataclasses.dataclass(frozen=True)
class Plan:
    """The static numbers of a search.

    entries     M
    k, metric   as in `search`
    size        C, entries of a block
    kept        entries kept of each query from block to block: k, or the L buckets of an approximate search
    exact       whether the search is exact
    """

    entries: int
    k: int
    metric: str
    size: int
    kept: int
    exact: bool


def plan_search(entries: int, k: int, metric: str, recall: float, block: int) -> Plan:
    """Return the Plan of a search for the k best of M `entries`, in equal blocks of about `block`."""
    size = -(-entries // -(-entries // block))
    size = min(-(-size // group(size, k)) * group(size, k), entries)
    slots = buckets(k, recall) if recall < 1 else entries
    if slots >= entries:
        return Plan(entries, k, metric, size, k, exact=True)
    return Plan(entries, k, metric, min(-(-size // slots) * slots, entries // slots * slots), slots, exact=False)


def buckets(k: int, target: float) -> int:
    """Return the smallest L >= k with 1 - (k - 1) / 2L >= target."""
    return max(k, math.ceil((k - 1) / (2 * (1 - target)) - 1e-6))


def _over_blocks(q_BTNH: Array, key_BMKH: Array, id_BM: Array, span_BT: Span, plan: Plan) -> Found:
    """Search the blocks of entries one after another."""
    (batch, time), heads = q_BTNH.shape[:2], key_BMKH.shape[2]
    if len(key_BMKH) == 1:  # one bank for all streams: their queries are one row
        q_BTNH, span_BT = jax.tree.map(lambda a: a.reshape(1, -1, *a.shape[2:]), (q_BTNH, span_BT))
    tiles = _tiles(q_BTNH, span_BT, heads)

    def step(best: Found, begin: Array):
        start = jnp.minimum(begin, plan.entries - plan.size)  # the last block overlaps the one before
        key_BCKH, id_BC = (lax.dynamic_slice_in_dim(a, start, plan.size, 1) for a in (key_BMKH, id_BM))
        id_BC = jnp.where(start + jnp.arange(plan.size) >= begin, id_BC, -1)

        def search_tile(args: tuple[tuple[Array, Span], Found]) -> Found:
            tile, best = args
            first_B1, end_B1 = tile[1][0].min(1, keepdims=True), tile[1][1].max(1, keepdims=True)
            search = partial(_search_tile, tile, key_BCKH=key_BCKH, id_BC=id_BC, start=start, plan=plan)
            return lax.cond(_seen(id_BC, first_B1, end_B1).any(), search, lambda best: best, best)

        return lax.map(search_tile, (tiles, best)), None

    shape_IBKGTR = (*tiles[0].shape[:-1], plan.kept)
    best = jnp.full(shape_IBKGTR, -jnp.inf), jnp.zeros(shape_IBKGTR, jnp.int32)
    best, _ = lax.scan(step, best, jnp.arange(0, plan.entries, plan.size, dtype=jnp.int32))
    score, index = best if plan.exact else keep_best(*best, plan.k)
    return tuple(_untile(a, q_BTNH.shape[1]).reshape(batch, time, -1, plan.k) for a in (score, index))  # pyright: ignore


def _search_tile(tile, best: Found, key_BCKH: Array, id_BC: Array, start: Array, plan: Plan) -> Found:
    """Return the best entries of a tile of queries, [B, K, G, T, R], after a block that begins at entry `start`."""
    q_BKGTH, (first_BT, end_BT) = tile

    def seen(queries: slice) -> Array:
        return _seen(id_BC[:, None], first_BT[:, queries, None], end_BT[:, queries, None])

    alike = (first_BT == first_BT[:, :1]).all() & (end_BT == end_BT[:, :1]).all()
    score_BKGTC = masked_dot(q_BKGTH, key_BCKH.astype(q_BKGTH.dtype).swapaxes(1, 2), seen, alike)
    if plan.metric == "l2":
        score_BKGTC -= 0.5 * jnp.square(key_BCKH.astype(jnp.float32)).sum(-1).swapaxes(1, 2)[:, :, None, None]
    if not plan.exact:
        return _best_of_buckets(best, score_BKGTC, start, plan.kept)
    score, index = select(score_BKGTC, min(plan.k, plan.size))
    if plan.size == plan.entries:  # there is one block
        return score, index
    return keep_best(jnp.concatenate([best[0], score], -1), jnp.concatenate([best[1], index + start], -1), plan.k)


def _tiles(q_BTNH: Array, span_BT: Span, kv_heads: int) -> tuple[Array, Span]:
    """Cut queries into I tiles of equal size: q_IBKGTH, first_IBT and end_IBT. Copies of the last query pad the last tile."""
    batch, time, heads, _ = q_BTNH.shape
    tile = min(TILE, time)

    def cut(a_BT: Array) -> Array:
        a_BT = jnp.pad(a_BT, [(0, 0), (0, -time % tile), *[(0, 0)] * (a_BT.ndim - 2)], mode="edge")
        return a_BT.reshape(batch, -1, tile, *a_BT.shape[2:]).swapaxes(0, 1)

    q_IBTKGH = cut(q_BTNH.reshape(batch, time, kv_heads, heads // kv_heads, -1))
    return q_IBTKGH.transpose(0, 1, 3, 4, 2, 5), jax.tree.map(cut, span_BT)


def _untile(a_IBKGTR: Array, time: int) -> Array:
    """Undo `_tiles`. Returns [B, T, N, R]."""
    a_BITKGR = a_IBKGTR.transpose(1, 0, 4, 2, 3, 5)
    return a_BITKGR.reshape(len(a_BITKGR), -1, math.prod(a_BITKGR.shape[3:5]), a_BITKGR.shape[-1])[:, :time]


def _seen(id_: Array, first: Array, end: Array) -> Array:
    return (id_ >= 0) & (id_ >= first) & (id_ < end)


def _best_of_buckets(best: Found, score: Array, start: Array, slots: int) -> Found:
    score = score.reshape(*score.shape[:-1], -1, slots)
    top = score.max(-2, keepdims=True)
    row = lax.broadcasted_iota(jnp.int32, score.shape, score.ndim - 2)
    row = jnp.where(score == top, row, LAST).min(-2)  # argmax, in two passes that a CPU vectorises
    index, score = start + row * slots + jnp.arange(slots), top.squeeze(-2)
    return jnp.maximum(best[0], score), jnp.where(score > best[0], index, best[1])


def keep_best(score: Array, index: Array, k: int) -> Found:
    """Return the k best of candidates that are in the order of their indices, so that of equal scores the lower index wins."""
    score, position = select(score, k)
    return score, jnp.take_along_axis(index, position, -1)
