"""Softmax attention over several sets of keys: the plain definition, and the same values computed in tiles of scores.

    y_t = sum_j softmax_j(q_t k_j + bias_tj) v_j        over the keys j of all sets that query t sees

`attend` is the definition. `attend_tiled` has the same values. Models call its two parts, `read` for each set and
`combine`. A kernel for an accelerator can replace `read`.

The sets are not concatenated in time, so a set that needs no gradient costs no backward products. A tile of scores (some
queries x some keys) stays in cache, and tiles that no query sees are skipped. For each group of queries, `read` returns the
sums of one set's softmax, relative to the group's own maximum m:

    y = sum_j e^(s_j - m) v_j ,   total = sum_j e^(s_j - m)

`combine` adds the sums of all sets after scaling each by e^(m - max of all m), and returns y / total. The result does not
depend on m, so m carries no gradient. Automatic differentiation then gives the short backward pass.

B stream, T query time, S key time, N query heads, K kv heads, G = N / K, H head dim, L = T + S.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from memtx.ops import dot

TILE = 128  # the least number of queries and of keys in a tile
MASKED = -1e30
ALL = slice(None)

Positions = Array | np.ndarray  # NumPy if known at compile time
Bias = Callable[[slice, slice], ArrayLike]  # scores [B or 1, N or 1, T, S] to add for a slice of queries and one of keys
Sums = tuple[Array, Array, Array]  # float32: y [B, K, G, T, H], total and m [B, K, G, T, 1]


@dataclasses.dataclass(frozen=True)
class View:
    """One set of keys as the queries of a call see it.

    A query sees a key that is valid, has 0 <= age < window, and is in the query's chunk. The age is the query's position minus
    the key's. If `future`, the age and the window do not matter.

    q_BTNH, k_BSKH, v_BSKH           rotated; the queries are also scaled
    position_BT, key_position_BS     [B or 1, T] and [B or 1, S], from a common origin
    valid_BS                         bool. None: every key is valid
    chunk_BT, key_chunk_BS           numbers of chunks. None: there is one chunk
    window                           how many positions back a query sees. None: all
    bias                             scores to add. None: nothing
    """

    q_BTNH: Array
    k_BSKH: Array
    v_BSKH: Array
    position_BT: Positions
    key_position_BS: Positions
    valid_BS: Array | None = None
    chunk_BT: Array | None = None
    key_chunk_BS: Array | None = None
    window: int | None = None
    future: bool = False
    bias: Bias | None = None

    @cached_property
    def lead(self) -> int | None:
        """The age of key 0 for query 0, if all positions are consecutive and known at compile time."""
        query, key = _first(self.position_BT), _first(self.key_position_BS)
        return None if query is None or key is None else query - key

    def age_BTS(self, queries: slice = ALL, keys: slice = ALL) -> Positions:
        """Return the ages of these keys for these queries, [B or 1, T, S], as NumPy if they are known at compile time."""
        return self.position_BT[:, queries, None] - self.key_position_BS[:, None, keys]

    def in_time(self, age_BTS: Positions) -> Positions:
        """Return which keys are neither later than the query nor beyond its window."""
        return (age_BTS >= 0) if self.window is None else (age_BTS >= 0) & (age_BTS < self.window)


def attend(views: Sequence[View]) -> Array:
    """Return y [B, T, N, H] in float32 by its definition: one softmax over the keys of all sets.

    A query that sees no key at all (padding) gets finite values without meaning.
    """
    values = [_for_each_head(view, view.v_BSKH) for view in views]
    return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores(views), -1), jnp.concatenate(values, 1))


def scores(views: Sequence[View]) -> Array:
    """Return the scores of the keys of all sets, [B, N, T, S of all sets], with MASKED or less for a key that is not seen."""
    found = []
    for view in views:
        k_BSNH = _for_each_head(view, view.k_BSKH)
        score_BNTS = jnp.einsum("BTNH,BSNH->BNTS", view.q_BTNH, k_BSNH)
        if view.bias:
            score_BNTS = score_BNTS + view.bias(slice(0, view.q_BTNH.shape[1]), slice(0, k_BSNH.shape[1]))
        age_BTS = view.age_BTS()
        seen_BTS = jnp.ones(age_BTS.shape, bool) if view.future else jnp.asarray(view.in_time(age_BTS))
        if view.valid_BS is not None:
            seen_BTS = seen_BTS & view.valid_BS[:, None]
        if view.chunk_BT is not None and view.key_chunk_BS is not None:
            seen_BTS = seen_BTS & (view.chunk_BT[:, :, None] == view.key_chunk_BS[:, None])
        found.append(score_BNTS + jnp.where(seen_BTS, 0.0, MASKED)[..., None, :, :])
    return jnp.concatenate(found, -1)


def _for_each_head(view: View, a_BSKH: Array) -> Array:
    """Return keys or values in float32, repeated for the query heads that share them, [B, S, N, H]."""
    return jnp.repeat(a_BSKH.astype(jnp.float32), view.q_BTNH.shape[2] // a_BSKH.shape[2], 2)


# --- the same in tiles ------------------------------------------------------------------------------------------------------


def attend_tiled(views: Sequence[View]) -> Array:
    """Return the values of `attend` in float32. Only the scores of a few tiles exist at a time."""
    return combine([read(view) for view in views])


def combine(reads: Sequence[Sums]) -> Array:
    """Return y [B, T, N, H] in float32 from the sums of all sets."""
    y, total, _ = merged(reads)
    y_BTKGH = (y / jnp.where(total > 0, total, 1)).transpose(0, 3, 1, 2, 4)
    return y_BTKGH.reshape(*y_BTKGH.shape[:2], -1, y_BTKGH.shape[-1])


def merged(reads: Sequence[Sums]) -> Sums:
    """Return the sums over the keys of all sets."""
    top = reduce(jnp.maximum, [m for _, _, m in reads])
    weights = [lax.stop_gradient(jnp.exp(m - top)) for _, _, m in reads]
    y = _add(y * w for (y, _, _), w in zip(reads, weights, strict=True))
    total = _add(total * w for (_, total, _), w in zip(reads, weights, strict=True))
    return y, total, top


def read(view: View) -> Sums:
    """Return the softmax sums over one set of keys (see the module)."""
    batch, time, _, head_dim = view.q_BTNH.shape
    size, kv_heads = view.k_BSKH.shape[1:3]
    q_BKGTH = view.q_BTNH.reshape(batch, time, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    k_BKSH, v_BKSH = view.k_BSKH.transpose(0, 2, 1, 3), view.v_BSKH.transpose(0, 2, 1, 3)
    rows, columns = tile_shape(time, size)
    ks, vs = _pieces(k_BKSH, columns, 2), _pieces(v_BKSH, columns, 2)
    groups = []
    for start, q in zip(range(0, time, rows), _pieces(q_BKGTH, rows, 3), strict=True):
        queries = slice(start, start + q.shape[3])
        first, end = visible(view, queries)
        tiles = range(first // columns, -(-end // columns))
        keys = [slice(i * columns, min((i + 1) * columns, size)) for i in tiles]
        scores = [_dot("BKTH,BKSH->BKTS", q, ks[i]) + hidden(view, queries, part) for i, part in zip(tiles, keys, strict=True)]
        if view.bias and keys:  # computed for all keys of the group at once
            bias = _by_kv_head(view.bias(queries, slice(keys[0].start, keys[-1].stop)), kv_heads)
            scores = [score + part for score, part in zip(scores, _pieces(bias, columns, -1), strict=True)]
        groups.append(_sums(scores, [vs[i] for i in tiles], q))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, 3), *groups)


def tile_shape(queries: int, keys: int) -> tuple[int, int]:
    """Return the rows and columns of a tile.

    Each is at least TILE. Few queries get wide tiles with as many scores. Long texts get larger tiles, which limits how many
    are compiled.
    """
    rows = TILE * max(1, -(-queries // (8 * TILE)))
    return rows, TILE * max(TILE // queries, 1, -(-keys // (8 * TILE)))


def visible(view: View, queries: slice) -> tuple[int, int]:
    """Return the range (first, end) of the keys that these queries may see, as far as it is known at compile time."""
    size = view.k_BSKH.shape[1]
    if view.future or view.lead is None:
        return 0, size
    first = 0 if view.window is None else max(0, view.lead + queries.start - view.window + 1)
    end = min(size, view.lead + queries.stop)
    return (first, end) if first < end else (0, 0)


def hidden(view: View, queries: slice, keys: slice) -> ArrayLike:
    """Return scores that hide keys, [B or 1, 1, 1, T or 1, S], or 0 if every key is known at compile time to be visible."""
    scores = 0.0
    if not view.future:
        scores = _hidden_in_time(view, queries, keys)
    if view.chunk_BT is not None and view.key_chunk_BS is not None:
        same_BTS = view.chunk_BT[:, queries, None] == view.key_chunk_BS[:, None, keys]
        scores = scores + jnp.where(same_BTS, 0.0, MASKED)[:, None, None]
    if view.valid_BS is not None:
        scores = scores + jnp.where(view.valid_BS[:, keys], 0.0, MASKED)[:, None, None, None]
    return scores


def _hidden_in_time(view: View, queries: slice, keys: slice) -> ArrayLike:
    if view.lead is None:
        age_BTS = view.age_BTS(queries, keys)
    else:
        nearest, farthest = view.lead + queries.start - keys.stop + 1, view.lead + queries.stop - 1 - keys.start
        if nearest >= 0 and (view.window is None or farthest < view.window):
            return 0.0
        # Computing the ages is faster than reading a constant.
        shape = (1, queries.stop - queries.start, keys.stop - keys.start)
        before, after = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))
        age_BTS = before - after + (view.lead + queries.start - keys.start)
    return jnp.where(view.in_time(age_BTS), 0.0, MASKED)[:, None, None]


def shear(score_BNTL: Array, size: int) -> Array:
    """Return y[i, j] = score[i, T - 1 - i + j] for j < S = `size`, [B, N, T, S], where L = T + S.

    It turns scores by distance into scores by key. A reshape to rows that are shorter by one shifts each row by one more than
    the row before.
    """
    *axes, rows, length = score_BNTL.shape
    flat = score_BNTL.reshape(*axes, rows * length)[..., : rows * (length - 1)]
    return flat.reshape(*axes, rows, length - 1)[..., rows - 1 : rows - 1 + size]


def _first(position_BT: Positions) -> int | None:
    """Return the first position if positions are known at compile time, consecutive and the same in all rows, or else None."""
    if not isinstance(position_BT, np.ndarray):
        return None
    first = int(position_BT[0, 0])
    return first if (position_BT == first + np.arange(position_BT.shape[1])).all() else None


def _by_kv_head(bias: ArrayLike, kv_heads: int) -> Array:
    """Split the heads of a bias, [B or 1, N or 1, T, S] -> [B or 1, K or 1, G or 1, T, S]."""
    bias = jnp.asarray(bias)
    return bias.reshape(bias.shape[0], min(kv_heads, bias.shape[1]), -1, *bias.shape[2:])


def _pieces(x: Array, size: int, axis: int) -> list[Array]:
    """Split an array along an axis. The gradient of `split` is a single concatenation."""
    return jnp.split(x, list(range(size, x.shape[axis], size)), axis)


def _sums(scores: list[Array], values: list[Array], q_BKGTH: Array) -> Sums:
    if not scores:
        nothing = jnp.zeros((*q_BKGTH.shape[:-1], 1), jnp.float32)
        return jnp.zeros(q_BKGTH.shape, jnp.float32), nothing, nothing + MASKED
    m = lax.stop_gradient(_over_keys(jnp.maximum, jnp.max, scores))
    exps = [jnp.exp(score - m) for score in scores]
    y = _add(_dot("BKTS,BKSH->BKTH", e.astype(v.dtype), v) for e, v in zip(exps, values, strict=True))
    return y, _over_keys(jnp.add, jnp.sum, exps), m


def _over_keys(combine: Callable, along: Callable, tiles: list[Array]) -> Array:
    """Reduce tiles [..., S] to [..., 1].

    Tiles of one width are combined first, so that only one pass runs along the keys, the slow axis.
    """
    widths: dict[int, Array] = {}
    for tile in tiles:
        width = tile.shape[-1]
        widths[width] = combine(widths[width], tile) if width in widths else tile
    return reduce(combine, [along(tile, -1, keepdims=True) for tile in widths.values()])


def _dot(spec: str, x_BKGT_: Array, y_BKSH: Array) -> Array:
    """Compute an einsum without G in float32, -> BKGT_.

    G and T are one axis of it, so its gradients transpose no tile.
    """
    batch, kv_heads, groups, time, _ = x_BKGT_.shape
    flat = x_BKGT_.reshape(batch, kv_heads, groups * time, -1)
    return dot.einsum(spec, flat, y_BKSH).reshape(batch, kv_heads, groups, time, -1)


def _add(terms: Iterable[Array]) -> Array:
    return reduce(jnp.add, terms)
