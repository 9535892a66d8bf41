"""Attention over several sources of keys with one softmax, computed in tiles of scores.

A memory and the call's own tokens are two sources. They are not concatenated in time, so a memory that needs no gradient costs
no backward products. A mechanism at the attention site declares which keys exist and which queries see them. This file does
the rest.

A tile of scores (some queries x some keys) stays in cache, and tiles that no query sees are skipped. For each group of queries
a source returns the sums of its softmax, relative to the group's own maximum m:

    y = sum_j e^(s_j - m) v_j ,   total = sum_j e^(s_j - m)

The sums of all sources are added after scaling each by e^(m - max of all m). The result is y / total.

The result does not depend on m, so m carries no gradient. Autodiff then yields the short backward pass.

B stream, T query time, S source time, N query heads, K kv heads, G = N / K, H head dim.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jax.typing import ArrayLike

from memtx.core import Dims, Segment
from memtx.nn.linear import Linear
from memtx.nn.positions import alibi_slopes, rope, t5_bucket

TILE = 128  # the least number of queries and of keys in a tile, as measured in benchmarks/speed
MASKED = -1e30
Positions = Array | np.ndarray  # NumPy if known at compile time


@dataclasses.dataclass(frozen=True)
class KeySet:
    """Keys and values that queries attend to. Visible keys are valid and have 0 <= age < window.

    The age is the query's position minus the key's. If `future`, queries see all valid keys of any age, and `window` is
    ignored.

    k_BSKH, v_BSKH     un-rotated
    position_BS        int32, the positions of the keys
    valid_BS           bool. None: every key is valid
    query_position_BT  the positions of the queries relative to these keys. None: their positions in the document
    window             how many positions back a query sees. None: all
    future             whether queries see later keys
    lead               a promise that saves work: keys are in order of time, and key `lead + t` has the position of query t
    gaps               whether positions may jump between neighbours. With `lead`, ages are then unknown at compile time
    often_empty        whether to skip this source at run time in calls in which no row has a valid key (needs valid_BS)
    """

    k_BSKH: Array
    v_BSKH: Array
    position_BS: Array
    valid_BS: Array | None
    query_position_BT: Array | None = None
    window: int | None = None
    future: bool = False
    lead: int | None = None
    gaps: bool = False
    often_empty: bool = False

    def positions(self, seg: Segment) -> tuple[Positions, Positions]:
        """Return the positions of queries [B or 1, T] and keys [B or 1, S], relative to each row's first query.

        They are NumPy arrays if they are known at compile time.
        """
        at_BT = seg.position_BT if self.query_position_BT is None else self.query_position_BT
        origin_B1 = at_BT[:, :1]
        queries, keys = at_BT - origin_B1, self.position_BS - origin_B1
        if not self.gaps and self.query_position_BT is None:  # tokens of one call are consecutive
            queries = np.arange(at_BT.shape[1])[None]
        if not self.gaps and self.lead is not None:
            keys = np.arange(self.k_BSKH.shape[1])[None] - self.lead
        return queries, keys

    def visible(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range (first, end) of keys that queries start..stop-1 can see."""
        size = self.k_BSKH.shape[1]
        if self.lead is None or self.future:
            return 0, size
        first = 0 if self.window is None else max(0, self.lead + start - self.window + 1)
        return first, min(size, self.lead + stop)


def attend(q_BTNH: Array, sources: list[KeySet], seg: Segment, dims: Dims) -> Array:
    """Return softmax(q k^T dims.scale + position bias) v over all sources together, [B, T, N, H] in q's dtype.

    A query that sees no key at all (padding) gets finite values without meaning.
    """
    reads = [(read_unless_empty if source.often_empty else read)(q_BTNH, source, seg, dims) for source in sources]
    top = reduce(jnp.maximum, [m for _, _, m in reads])
    weights = [jnp.exp(m - top) for _, _, m in reads]
    y = add(y * w for (y, _, _), w in zip(reads, weights, strict=True))
    total = add(total * w for (_, total, _), w in zip(reads, weights, strict=True))
    out_BKGTH = (y / total).astype(q_BTNH.dtype)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape)


def read(q_BTNH: Array, source: KeySet, seg: Segment, dims: Dims) -> tuple[Array, Array, Array]:
    """Return the float32 sums of one source: y [B, K, G, T, H], total and m [B, K, G, T, 1]."""
    batch, time, _, head_dim = q_BTNH.shape
    q, k, v = q_BTNH, source.k_BSKH.astype(q_BTNH.dtype), source.v_BSKH.astype(q_BTNH.dtype)
    at_BT, at_BS = source.positions(seg)
    if dims.position == "rope":
        q, k = (rope(x, at, dims.rope_base, dims.rope_scaling) for x, at in ((q, at_BT), (k, at_BS)))
    q_BKGTH = (q * dims.scale).reshape(batch, time, dims.num_kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    rows, columns = tile_shape(time, k.shape[1])
    ks, vs, qs = pieces(k_BKSH, columns, 2), pieces(v_BKSH, columns, 2), pieces(q_BKGTH, rows, 3)
    groups = []
    for start, q in zip(range(0, time, rows), qs, strict=True):
        stop = start + q.shape[3]
        first, end = source.visible(start, stop)
        tiles = range(first // columns, -(-end // columns))
        scores = []
        for i in tiles:
            keys = slice(i * columns, (i + 1) * columns)
            score = dot("BKTH,BKSH->BKTS", q, ks[i])
            age_BTS = at_BT[:, start:stop, None] - at_BS[:, None, keys]
            scores.append(score + position_bias(age_BTS, source.future, seg, dims) + hidden(age_BTS, source, keys))
        groups.append(sums(scores, [vs[i] for i in tiles], q))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, 3), *groups)


def pieces(x: Array, size: int, axis: int) -> list[Array]:
    """Cut along an axis. The gradient of `split` is one concatenation."""
    return jnp.split(x, list(range(size, x.shape[axis], size)), axis)


def hidden(age_BTS: Positions, source: KeySet, keys: slice) -> ArrayLike:
    """Return a bias that hides keys, [B or 1, 1, 1, T or 1, S], or 0 if every key is known at compile time to be visible."""
    bias, window = 0.0, source.window
    static = isinstance(age_BTS, np.ndarray)
    if not source.future and not (static and age_BTS.min() >= 0 and (window is None or age_BTS.max() < window)):
        if static:  # computing the ages is faster than reading a constant
            before, after = (lax.broadcasted_iota(jnp.int32, age_BTS.shape, axis) for axis in (1, 2))
            age_BTS = before - after + int(age_BTS[0, 0, 0])
        seen_BTS = (age_BTS >= 0) if window is None else (age_BTS >= 0) & (age_BTS < window)
        bias = jnp.where(seen_BTS, 0.0, MASKED)[:, None, None]
    if source.valid_BS is not None:
        bias = bias + jnp.where(source.valid_BS[:, keys], 0.0, MASKED)[:, None, None, None]
    return bias


def tile_shape(queries: int, keys: int) -> tuple[int, int]:
    """Return the rows and columns of a tile.

    Each is at least TILE. Few queries get wide tiles with as many scores. Long texts get larger tiles, which limits how many
    are compiled.
    """
    rows = TILE * max(1, -(-queries // (8 * TILE)))
    return rows, TILE * max(TILE // queries, 1, -(-keys // (8 * TILE)))


def sums(scores: list[Array], values: list[Array], q_BKGTH: Array) -> tuple[Array, Array, Array]:
    """Return y, total and m of one group of queries."""
    if not scores:
        nothing = jnp.zeros((*q_BKGTH.shape[:-1], 1), jnp.float32)
        return jnp.zeros(q_BKGTH.shape, jnp.float32), nothing, nothing + MASKED
    m = lax.stop_gradient(over_keys(jnp.maximum, jnp.max, scores))
    exps = [jnp.exp(score - m) for score in scores]
    y = add(dot("BKTS,BKSH->BKTH", e.astype(v.dtype), v) for e, v in zip(exps, values, strict=True))
    return y, over_keys(jnp.add, jnp.sum, exps), m


def over_keys(combine: Callable, along: Callable, tiles: list[Array]) -> Array:
    """Reduce tiles [..., S] to [..., 1].

    Tiles of one width are combined first, so that only one pass runs along the keys, the slow axis.
    """
    widths: dict[int, Array] = {}
    for tile in tiles:
        width = tile.shape[-1]
        widths[width] = combine(widths[width], tile) if width in widths else tile
    return reduce(combine, [along(tile, -1, keepdims=True) for tile in widths.values()])


def dot(spec: str, x_BKGT_: Array, y_BKSH: Array) -> Array:
    """Compute an einsum without G in float32, -> BKGT_.

    G and T are one axis of it, so its gradients transpose no tile.
    """
    batch, kv_heads, groups, time, _ = x_BKGT_.shape
    flat = x_BKGT_.reshape(batch, kv_heads, groups * time, -1)
    return jnp.einsum(spec, flat, y_BKSH, preferred_element_type=jnp.float32).reshape(batch, kv_heads, groups, time, -1)


def add(terms: Iterable[Array]) -> Array:
    """Sum arrays."""
    return reduce(jnp.add, terms)


def read_unless_empty(q_BTNH: Array, source: KeySet, seg: Segment, dims: Dims) -> tuple[Array, Array, Array]:
    """`read`, skipped at run time if no row has a valid key.

    The backward pass recomputes the branch from its arguments. Saved residuals would be filled with zeros in calls that skip
    it.
    """

    def work(q, k, v):
        return read(q, dataclasses.replace(source, k_BSKH=k, v_BSKH=v), seg, dims)

    def skip(*_):
        y, total, m = jax.eval_shape(work, q_BTNH, source.k_BSKH, source.v_BSKH)
        return jnp.zeros(y.shape, y.dtype), jnp.zeros(total.shape, total.dtype), jnp.full(m.shape, MASKED, m.dtype)

    assert source.valid_BS is not None
    some = source.valid_BS.any()
    return lax.cond(some, jax.checkpoint(work), skip, q_BTNH, source.k_BSKH, source.v_BSKH)


def position_bias(age_BTS: Positions, future: bool, seg: Segment, dims: Dims) -> ArrayLike:
    """Return the position bias of the scores, [B, K, G, T, S]: ALiBi's slope * -age, T5's bucketed table, or 0.

    future: whether later keys are visible. ALiBi is then slope * -|age|, and T5 has buckets for both directions.
    """
    if dims.position == "alibi":
        slope_KG = alibi_slopes(dims.num_heads).reshape(dims.num_kv_heads, -1)
        far_BTS = jnp.abs(age_BTS) if future else jnp.maximum(age_BTS, 0)
        return -slope_KG[:, :, None, None] * far_BTS[:, None, None].astype(jnp.float32)
    if dims.position == "t5":
        table = seg.shared["relative_bias"].astype(jnp.float32)  # [buckets, N], one leaf of the model
        bias = jnp.moveaxis(table[t5_bucket(age_BTS, future)], -1, 1)
        return bias.reshape(bias.shape[0], dims.num_kv_heads, -1, *bias.shape[2:])
    return 0.0


class Projections(nnx.Module):
    """The q, k, v and output maps around a memory at the attention site. Without `kv` there are none to k and v."""

    def __init__(self, key: Array, dims: Dims, *, bias: bool = False, qkv_bias: bool = False, kv: bool = True):
        for_q, for_kv, for_out = jax.random.split(key, 3)
        self.dims = dims
        self.q = Linear(for_q, dims.width, dims.num_heads * dims.head_dim, bias=bias or qkv_bias)
        width = 2 * dims.num_kv_heads * dims.head_dim
        self.kv = Linear(for_kv, dims.width, width, bias=bias or qkv_bias) if kv else None
        self.out = Linear(for_out, dims.num_heads * dims.head_dim, dims.width, bias=bias, shard="in")

    def heads(self, x_BTD: Array) -> tuple[Array, Array | None, Array | None]:
        """Return q_BTNH, k_BTKH, v_BTKH. k and v are None without `kv`."""
        q = self.queries(x_BTD)
        return (q, *self.keys_values(x_BTD)) if self.kv else (q, None, None)

    def queries(self, x_BTD: Array) -> Array:
        """Return q_BTNH."""
        return self.q(x_BTD).reshape(*x_BTD.shape[:2], self.dims.num_heads, self.dims.head_dim)

    def keys_values(self, x_BTD: Array) -> tuple[Array, Array]:
        """Return k_BTKH, v_BTKH."""
        assert self.kv is not None
        k, v = (a.reshape(*x_BTD.shape[:2], self.dims.num_kv_heads, self.dims.head_dim) for a in self.kv.halves(x_BTD))
        return k, v

    def merge(self, y_BTNH: Array) -> Array:
        """Map the outputs of all heads y_BTNH back to width D, [B, T, D]."""
        return self.out(y_BTNH.reshape(*y_BTNH.shape[:2], -1))
