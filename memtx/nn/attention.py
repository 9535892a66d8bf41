"""Attention over several sources of keys with one softmax, in static tiles of what can be seen.

A memory and the call's own tokens are two sources; nothing is concatenated in time, so a memory that gets no gradient costs
no backward dots. Every mechanism at the attention site says which keys exist and which may be seen; this file does the rest.

Scores are made in tiles (a block of queries x a block of keys) that stay in cache, and only those that can be seen. A tile
gives the sums that softmax is made of, relative to the block's own maximum m:

    y = sum_j e^(s_j - m) v_j ,   total = sum_j e^(s_j - m)

which sources add up after scaling each by e^(m - max of all m); the result is y / total.

It does not depend on m, so m carries no gradient, and what autodiff makes of this is the lean backward pass.

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

BLOCK = 128  # queries, and keys, of a tile; measured in experiments/speed
MASKED = -1e30
Places = Array | np.ndarray  # positions; of numpy where they are known before the program runs


@dataclasses.dataclass(frozen=True)
class Source:
    """Keys and values that queries may see: those that are valid and 0 <= age < window, age = query position - key position.

    With `future` the valid ones of any age (and no window).

    k_BSKH, v_BSKH un-rotated; position_BS int32; valid_BS bool
    query_position_BT  where queries stand for this source, if not at their place in the document
    window             how far back a query sees; None: without end
    future             keys after the query are seen too
    lead               a promise that saves work: keys are in order of time, and key `lead + t` stands where query t does
    gaps               positions may jump between neighbours: with `lead`, ages are not known before the program runs
    often_empty        skip it, at run time, in a call in which no row has a valid key (of valid_BS)
    """

    k_BSKH: Array
    v_BSKH: Array
    position_BS: Array
    valid_BS: Array | None  # None: every key that age does not hide is valid
    query_position_BT: Array | None = None
    window: int | None = None
    future: bool = False
    lead: int | None = None
    gaps: bool = False
    often_empty: bool = False

    def places(self, seg: Segment) -> tuple[Places, Places]:
        """Where queries and keys stand, [B or 1, T] and [B or 1, S], from an origin near by: static where they can be."""
        at_BT = seg.position_BT if self.query_position_BT is None else self.query_position_BT
        origin_B1 = at_BT[:, :1]
        queries, keys = at_BT - origin_B1, self.position_BS - origin_B1
        if not self.gaps and self.query_position_BT is None:  # tokens of one call follow one another
            queries = np.arange(at_BT.shape[1])[None]
        if not self.gaps and self.lead is not None:
            keys = np.arange(self.k_BSKH.shape[1])[None] - self.lead
        return queries, keys

    def visible(self, start: int, stop: int) -> tuple[int, int]:
        """The keys (first, end) that queries start..stop-1 can possibly see."""
        size = self.k_BSKH.shape[1]
        if self.lead is None or self.future:
            return 0, size
        first = 0 if self.window is None else max(0, self.lead + start - self.window + 1)
        return first, min(size, self.lead + stop)


def attend(q_BTNH: Array, sources: list[Source], seg: Segment, dims: Dims) -> Array:
    """softmax(q k^T dims.scale + position bias) v over all sources together -> [B, T, N, H] in q's dtype.

    A query that sees no key at all (padding) gives finite values that mean nothing.
    """
    reads = [(read_unless_empty if source.often_empty else read)(q_BTNH, source, seg, dims) for source in sources]
    top = reduce(jnp.maximum, [m for _, _, m in reads])
    weights = [jnp.exp(m - top) for _, _, m in reads]
    y = add(y * w for (y, _, _), w in zip(reads, weights, strict=True))
    total = add(total * w for (_, total, _), w in zip(reads, weights, strict=True))
    out_BKGTH = (y / total).astype(q_BTNH.dtype)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(q_BTNH.shape)


def read(q_BTNH: Array, source: Source, seg: Segment, dims: Dims) -> tuple[Array, Array, Array]:
    """One source's sums, in float32: y [B, K, G, T, H], total and m [B, K, G, T, 1]."""
    batch, time, _, head_dim = q_BTNH.shape
    q, k, v = q_BTNH, source.k_BSKH.astype(q_BTNH.dtype), source.v_BSKH.astype(q_BTNH.dtype)
    at_BT, at_BS = source.places(seg)
    if dims.position == "rope":
        q, k = (rope(x, at, dims.rope_base, dims.rope_scaling) for x, at in ((q, at_BT), (k, at_BS)))
    q_BKGTH = (q * dims.scale).reshape(batch, time, dims.num_kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    rows, columns = tile_shape(time, k.shape[1])
    ks, vs, qs = pieces(k_BKSH, columns, 2), pieces(v_BKSH, columns, 2), pieces(q_BKGTH, rows, 3)
    blocks = []
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
        blocks.append(sums(scores, [vs[i] for i in tiles], q))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, 3), *blocks)


def pieces(x: Array, size: int, axis: int) -> list[Array]:
    """Cut along an axis; by `split`, whose gradient is one concatenation."""
    return jnp.split(x, list(range(size, x.shape[axis], size)), axis)


def hidden(age_BTS: Places, source: Source, keys: slice) -> ArrayLike:
    """What is added to the scores to hide keys, [B or 1, 1, 1, T or 1, S]: nothing where a static age shows them all."""
    bias, window = 0.0, source.window
    static = isinstance(age_BTS, np.ndarray)
    if not source.future and not (static and age_BTS.min() >= 0 and (window is None or age_BTS.max() < window)):
        if static:  # the same ages, made in the loop rather than read
            before, after = (lax.broadcasted_iota(jnp.int32, age_BTS.shape, axis) for axis in (1, 2))
            age_BTS = before - after + int(age_BTS[0, 0, 0])
        seen_BTS = (age_BTS >= 0) if window is None else (age_BTS >= 0) & (age_BTS < window)
        bias = jnp.where(seen_BTS, 0.0, MASKED)[:, None, None]
    if source.valid_BS is not None:
        bias = bias + jnp.where(source.valid_BS[:, keys], 0.0, MASKED)[:, None, None, None]
    return bias


def tile_shape(queries: int, keys: int) -> tuple[int, int]:
    """Rows and columns of a tile: at least a BLOCK of each, as many scores when queries are few, and few enough to compile."""
    rows = BLOCK * max(1, -(-queries // (8 * BLOCK)))
    return rows, BLOCK * max(BLOCK // queries, 1, -(-keys // (8 * BLOCK)))


def sums(scores: list[Array], values: list[Array], q_BKGTH: Array) -> tuple[Array, Array, Array]:
    """y, total and m of one block of queries."""
    if not scores:
        nothing = jnp.zeros((*q_BKGTH.shape[:-1], 1), jnp.float32)
        return jnp.zeros(q_BKGTH.shape, jnp.float32), nothing, nothing + MASKED
    m = lax.stop_gradient(over_keys(jnp.maximum, jnp.max, scores))
    exps = [jnp.exp(score - m) for score in scores]
    y = add(dot("BKTS,BKSH->BKTH", e.astype(v.dtype), v) for e, v in zip(exps, values, strict=True))
    return y, over_keys(jnp.add, jnp.sum, exps), m


def over_keys(combine: Callable, along: Callable, tiles: list[Array]) -> Array:
    """Tiles [..., S] -> [..., 1]. Those of one width are combined first: then one pass goes along the keys, the slow axis."""
    widths: dict[int, Array] = {}
    for tile in tiles:
        width = tile.shape[-1]
        widths[width] = combine(widths[width], tile) if width in widths else tile
    return reduce(combine, [along(tile, -1, keepdims=True) for tile in widths.values()])


def dot(spec: str, x_BKGT_: Array, y_BKSH: Array) -> Array:
    """An einsum without G, in float32 -> BKGT_. With G and T as one axis its gradients transpose no tile."""
    batch, kv_heads, groups, time, _ = x_BKGT_.shape
    flat = x_BKGT_.reshape(batch, kv_heads, groups * time, -1)
    return jnp.einsum(spec, flat, y_BKSH, preferred_element_type=jnp.float32).reshape(batch, kv_heads, groups, time, -1)


def add(terms: Iterable[Array]) -> Array:
    return reduce(jnp.add, terms)


def read_unless_empty(q_BTNH: Array, source: Source, seg: Segment, dims: Dims) -> tuple[Array, Array, Array]:
    """`read`, but nothing at run time where no row has a valid key.

    The branch is recomputed in the backward pass, from its arguments: what it keeps is filled with zeros if it is not taken.
    """

    def work(q, k, v):
        return read(q, dataclasses.replace(source, k_BSKH=k, v_BSKH=v), seg, dims)

    def skip(*_):
        y, total, m = jax.eval_shape(work, q_BTNH, source.k_BSKH, source.v_BSKH)
        return jnp.zeros(y.shape, y.dtype), jnp.zeros(total.shape, total.dtype), jnp.full(m.shape, MASKED, m.dtype)

    assert source.valid_BS is not None
    some = source.valid_BS.any()
    return lax.cond(some, jax.checkpoint(work), skip, q_BTNH, source.k_BSKH, source.v_BSKH)


def position_bias(age_BTS: Places, future: bool, seg: Segment, dims: Dims) -> ArrayLike:
    """What is added to the scores [B, K, G, T, S]: ALiBi's slope * -age, T5's bucketed table, or nothing.

    future: keys after the query have biases too: ALiBi's slope * -|age|, T5's buckets of both directions.
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
    """The q, k, v and output maps around an attention-site memory; those to k and v only with `kv`."""

    def __init__(self, key: Array, dims: Dims, *, bias: bool = False, qkv_bias: bool = False, kv: bool = True):
        for_q, for_kv, for_out = jax.random.split(key, 3)
        self.dims = dims
        self.q = Linear(for_q, dims.width, dims.num_heads * dims.head_dim, bias=bias or qkv_bias)
        width = 2 * dims.num_kv_heads * dims.head_dim
        self.kv = Linear(for_kv, dims.width, width, bias=bias or qkv_bias) if kv else None
        self.out = Linear(for_out, dims.num_heads * dims.head_dim, dims.width, bias=bias)

    def heads(self, x_BTD: Array) -> tuple[Array, Array | None, Array | None]:
        """-> q_BTNH, k_BTKH, v_BTKH"""
        q = self.queries(x_BTD)
        return (q, *self.keys_values(x_BTD)) if self.kv else (q, None, None)

    def queries(self, x_BTD: Array) -> Array:
        """-> q_BTNH"""
        return self.q(x_BTD).reshape(*x_BTD.shape[:2], self.dims.num_heads, self.dims.head_dim)

    def keys_values(self, x_BTD: Array) -> tuple[Array, Array]:
        """-> k_BTKH, v_BTKH"""
        assert self.kv is not None
        k, v = (a.reshape(*x_BTD.shape[:2], self.dims.num_kv_heads, self.dims.head_dim) for a in self.kv.halves(x_BTD))
        return k, v

    def merge(self, y_BTNH: Array) -> Array:
        return self.out(y_BTNH.reshape(*y_BTNH.shape[:2], -1))
