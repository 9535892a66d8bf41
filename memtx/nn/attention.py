"""Attention of a mechanism: sets of keys, positions, and the projections around them.

A mechanism at the attention site declares which keys exist and which queries see them, as KeySets: for example its memory and
the call's own tokens. `attend` computes one softmax over all of them. The arithmetic is in ops/attention.py.

B stream, T query time, S key time, N query heads, K kv heads, H head dim.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from memtx.core import Dims, Segment, wants
from memtx.nn.linear import Linear
from memtx.nn.positions import alibi_slopes, rope, t5_bucket
from memtx.nn.reads import ATTENTION, NOWHERE, OWN, Reads, emit_reads, reads
from memtx.ops import attention, ring
from memtx.ops.attention import MASKED, TILE, Bias, Positions, Sums, View
from memtx.ops.backend import platform
from memtx.ops.context import is_divided
from memtx.ops.rows import take
from memtx.ops.skip import skip_unless

MOST_READS = 32  # keys that attribution lists per query and head


@dataclasses.dataclass(frozen=True)
class Origin:
    """The tokens that keys were made of, for attribution, if they are not the tokens at the keys' positions.

    document   OWN, SOURCE or NOWHERE (see nn/reads.py), or an array [S] of them
    first_BS   the first token of each key. In OWN text on the scale of `seg.position_BT`, else an index. None: key j is j
    tokens_BS  the number of tokens of each key
    """

    document: ArrayLike = NOWHERE
    first_BS: Positions | None = None
    tokens_BS: ArrayLike = 1


@dataclasses.dataclass(frozen=True)
class KeySet:
    """Keys and values that queries attend to. Visible keys are valid and have 0 <= age < window.

    The age is the query's position minus the key's. If `future`, queries see all valid keys of any age, and `window` is
    ignored.

    `recent` and `call` build the two usual sets, whose positions are known at compile time. Tiles that no query sees then cost
    nothing. Other sets give the position of each key.

    k_BSKH, v_BSKH     un-rotated
    position_BS        int32, the positions of the keys. None in sets from `recent` and `call`
    valid_BS           bool. None: every key is valid
    query_position_BT  the positions of the queries relative to these keys. None: their positions in the document
    window             how many positions back a query sees. None: all
    future             whether queries see later keys
    chunk_BS           with `query_chunk_BT`: the number of each key's chunk. Queries see only keys in their chunk
    query_chunk_BT     the number of each query's chunk
    bias               a function of a slice of queries and one of keys: scores to add, [B or 1, N or 1, T, S]
    often_empty        whether to skip this set at run time if no row has a valid key (needs valid_BS)
    oldest_B           of a ring of the S tokens before the call: the index of the oldest key. None: keys are not a ring
    origin             the tokens of the keys, for attribution. None: each key is the token at its position
    """

    k_BSKH: Array
    v_BSKH: Array
    position_BS: Positions | None
    valid_BS: Array | None
    query_position_BT: Positions | None = None
    window: int | None = None
    future: bool = False
    chunk_BS: Array | None = None
    query_chunk_BT: Array | None = None
    bias: Bias | None = None
    often_empty: bool = False
    oldest_B: Array | None = None
    origin: Origin | None = None
    _start: int | None = None  # the position of key 0 relative to the call's first query, if keys have one position each

    def __post_init__(self):
        if (self.position_BS is None) == (self._start is None):
            raise ValueError("give position_BS, or use KeySet.recent or KeySet.call")

    @classmethod
    def recent(
        cls, k_BSKH: Array, v_BSKH: Array, valid_BS: Array, *, window: int | None = None, often_empty: bool = False
    ) -> KeySet:
        """Return the set of the S tokens just before the call, in order of time, with one position each."""
        start = -k_BSKH.shape[1]
        return cls(k_BSKH, v_BSKH, None, valid_BS, window=window, often_empty=often_empty, _start=start)

    @classmethod
    def call(cls, k_BTKH: Array, v_BTKH: Array, seg: Segment, *, window: int | None = None, future: bool = False) -> KeySet:
        """Return the set of the call's own tokens.

        Padding comes last, so real queries do not see it, unless they see later keys.
        """
        return cls(k_BTKH, v_BTKH, None, seg.mask_BT if future else None, window=window, future=future, _start=0)

    def within_chunks(self, query_chunk_BT: Array, chunk_BS: Array) -> KeySet:
        """Return a set in which queries see only keys with the same chunk number."""
        return dataclasses.replace(self, query_chunk_BT=query_chunk_BT, chunk_BS=chunk_BS)

    def without(self, hidden_BS: Array) -> KeySet:
        """Return the set without the keys at which the mask is True."""
        valid_BS = ~hidden_BS if self.valid_BS is None else self.valid_BS & ~hidden_BS
        return dataclasses.replace(self, valid_BS=valid_BS)

    def in_order(self) -> KeySet:
        """Return the set with the keys of a ring in the order of time, so that positions are known at compile time."""
        if self.oldest_B is None or self.valid_BS is None:
            return self
        index_BS = (self.oldest_B[:, None] + jnp.arange(self.k_BSKH.shape[1])) % self.k_BSKH.shape[1]
        k, v, valid = (take(a, index_BS) for a in (self.k_BSKH, self.v_BSKH, self.valid_BS))
        return KeySet.recent(k, v, valid, window=self.window)

    def positions(self, seg: Segment) -> tuple[Positions, Positions]:
        """Return the positions of queries [B or 1, T] and keys [B or 1, S], relative to each row's first query.

        They are NumPy arrays if they are known at compile time. The positions of a call's tokens are consecutive.
        """
        at_BT = seg.position_BT if self.query_position_BT is None else self.query_position_BT
        origin_B1 = at_BT[:, :1]
        queries = np.arange(at_BT.shape[1])[None] if self.query_position_BT is None else at_BT - origin_B1
        if self.position_BS is not None:
            return queries, self.position_BS - origin_B1
        assert self._start is not None
        return queries, self._start + np.arange(self.k_BSKH.shape[1])[None]

    def origins(self, seg: Segment) -> tuple[ArrayLike, ArrayLike, ArrayLike]:
        """Return document, position and number of tokens of each key as in Reads, [B or 1, T or 1, S]."""
        at_BT, at_BS = self.positions(seg)
        by_age = at_BS[:, None] - at_BT[:, :, None]
        if self.origin is None:
            return OWN, by_age, 1
        document, first_BS, tokens_BS = self.origin.document, self.origin.first_BS, self.origin.tokens_BS
        index = jnp.arange(self.k_BSKH.shape[1])[None, None]
        own = by_age if first_BS is None else first_BS[:, None] - seg.position_BT[:, :, None]
        return document, jnp.where(jnp.asarray(document) == OWN, own, index), jnp.atleast_2d(jnp.asarray(tokens_BS))[:, None]


def attend(q_BTNH: Array, sets: Sequence[KeySet], seg: Segment, dims: Dims) -> Array:
    """Return softmax(q k^T dims.scale + position bias) v over all sets together, [B, T, N, H] in q's dtype.

    A query that sees no key at all (padding) gets finite values without meaning.
    """
    if wants(ATTENTION):
        emit_reads(most_read(q_BTNH, sets, seg, dims), kind=ATTENTION)
    if is_divided(q_BTNH):
        views = [view(q_BTNH, keys, seg, dims) for keys in sets]
        if ring.fits(views):
            return ring.attend(views).astype(q_BTNH.dtype)
    if q_BTNH.shape[1] >= TILE and platform(q_BTNH) == "tpu":
        from memtx.ops import splash  # imports Pallas, which takes a second

        views = [view(q_BTNH, keys.in_order(), seg, dims) for keys in sets]
        if not (why := splash.obstacle(views)):
            return splash.attend(views)
        warnings.warn(f"attention forms tiles of scores instead of using the kernel for TPUs: {why}", stacklevel=2)
    sums = [(_read_unless_empty if keys.often_empty else _read)(q_BTNH, keys, seg, dims) for keys in sets]
    return attention.combine(sums).astype(q_BTNH.dtype)


def most_read(q_BTNH: Array, sets: Sequence[KeySet], seg: Segment, dims: Dims) -> Reads:
    """Return the MOST_READS keys with the largest weights per query and head. Forms all scores, queries x keys."""
    score_BTNS = attention.scores([view(q_BTNH, keys, seg, dims) for keys in sets]).swapaxes(1, 2)
    weight_BTNS = jax.nn.softmax(score_BTNS, -1) * (score_BTNS > MASKED / 2)
    weight_BTNR, index_BTNR = jax.lax.top_k(weight_BTNS, min(MOST_READS, weight_BTNS.shape[-1]))
    (batch, time), labels = q_BTNH.shape[:2], []
    for parts in zip(*(keys.origins(seg) for keys in sets), strict=True):  # documents, positions, numbers of tokens
        shapes = [(batch, time, keys.k_BSKH.shape[1]) for keys in sets]
        line_BTS = jnp.concatenate([jnp.broadcast_to(part, shape) for part, shape in zip(parts, shapes, strict=True)], -1)
        line_BTNS = jnp.broadcast_to(line_BTS[:, :, None], weight_BTNS.shape)
        labels.append(jnp.take_along_axis(line_BTNS, index_BTNR, -1))
    document, position, tokens = labels
    rest_BTN = weight_BTNS.sum(-1) - weight_BTNR.sum(-1)
    return reads(weight_BTNR, jnp.maximum(rest_BTN, 0), document=document, position=position, tokens=tokens)


def view(q_BTNH: Array, keys: KeySet, seg: Segment, dims: Dims) -> View:
    """Return the arrays of one softmax: rotated keys and scaled queries, their positions, and the bias of their scores."""
    q, k, v = q_BTNH, keys.k_BSKH.astype(q_BTNH.dtype), keys.v_BSKH.astype(q_BTNH.dtype)
    at_BT, at_BS = keys.positions(seg)
    if dims.position == "rope":
        q, k = (rope(x, at, dims.rope_base, dims.rope_scaling) for x, at in ((q, at_BT), (k, at_BS)))

    def bias(queries: slice, columns: slice) -> ArrayLike:
        age_BTS = at_BT[:, queries, None] - at_BS[:, None, columns]
        by_position = position_bias(age_BTS, keys.future, seg, dims)
        return by_position if keys.bias is None else by_position + keys.bias(queries, columns)

    return View(
        *(q * dims.scale, k, v, at_BT, at_BS, keys.valid_BS, keys.query_chunk_BT, keys.chunk_BS, keys.window, keys.future),
        bias=bias if keys.bias or dims.position in ("alibi", "t5") else None,
    )


def _read(q_BTNH: Array, keys: KeySet, seg: Segment, dims: Dims) -> Sums:
    return attention.read(view(q_BTNH, keys, seg, dims))


def _read_unless_empty(q_BTNH: Array, keys: KeySet, seg: Segment, dims: Dims) -> Sums:
    """Call `_read`, or skip it at run time if no row has a valid key.

    The backward pass recomputes it from its arguments. Saved residuals would be filled with zeros in calls that skip it.
    """

    def work(q, k, v):
        return _read(q, dataclasses.replace(keys, k_BSKH=k, v_BSKH=v), seg, dims)

    assert keys.valid_BS is not None
    nothing = (0.0, 0.0, MASKED)
    return skip_unless(keys.valid_BS.any(), jax.checkpoint(work), nothing, q_BTNH, keys.k_BSKH, keys.v_BSKH)


def position_bias(age_BTS: Positions, future: bool, seg: Segment, dims: Dims) -> ArrayLike:
    """Return the position bias of the scores, [B or 1, N, T, S]: ALiBi's slope * -age, T5's bucketed table, or 0.

    future: whether later keys are visible. ALiBi is then slope * -|age|, and T5 has buckets for both directions.
    """
    if dims.position == "alibi":
        far_BTS = jnp.abs(age_BTS) if future else jnp.maximum(age_BTS, 0)
        return -alibi_slopes(dims.num_heads)[:, None, None] * far_BTS[:, None].astype(jnp.float32)
    if dims.position == "t5":
        table = seg.shared["relative_bias"].astype(jnp.float32)  # [buckets, N], one leaf of the model
        return jnp.moveaxis(table[t5_bucket(age_BTS, future)], -1, 1)
    return 0.0


class Projections(nnx.Module):
    """The q, k, v and output maps around a memory at the attention site. Without `kv` there are no maps to k and v."""

    def __init__(self, key: Array, dims: Dims, *, bias: bool = False, qkv_bias: bool = False, kv: bool = True):
        for_q, for_k, for_v, for_out = jax.random.split(key, 4)
        self.dims = dims
        inner, kv_inner = dims.num_heads * dims.head_dim, dims.num_kv_heads * dims.head_dim
        self.q = Linear(for_q, dims.width, inner, bias=bias or qkv_bias)
        self.k = Linear(for_k, dims.width, kv_inner, bias=bias or qkv_bias) if kv else None
        self.v = Linear(for_v, dims.width, kv_inner, bias=bias or qkv_bias) if kv else None
        self.out = Linear(for_out, inner, dims.width, bias=bias, shard="in")

    def heads(self, x_BTD: Array) -> tuple[Array, Array | None, Array | None]:
        """Return q_BTNH, k_BTKH, v_BTKH. k and v are None without `kv`."""
        q = self.queries(x_BTD)
        return (q, *self.keys_values(x_BTD)) if self.k else (q, None, None)

    def queries(self, x_BTD: Array) -> Array:
        """Return q_BTNH."""
        return self.q(x_BTD).reshape(*x_BTD.shape[:2], self.dims.num_heads, self.dims.head_dim)

    def keys_values(self, x_BTD: Array) -> tuple[Array, Array]:
        """Return k_BTKH, v_BTKH."""
        assert self.k is not None
        assert self.v is not None
        shape = (*x_BTD.shape[:2], self.dims.num_kv_heads, self.dims.head_dim)
        return self.k(x_BTD).reshape(shape), self.v(x_BTD).reshape(shape)

    def merge(self, y_BTNH: Array) -> Array:
        """Map the outputs of all heads y_BTNH back to width D, [B, T, D]."""
        return self.out(y_BTNH.reshape(*y_BTNH.shape[:2], -1))
