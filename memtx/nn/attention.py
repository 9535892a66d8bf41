"""Attention over several sources of keys with one softmax, in static query blocks that slice only the keys they can see.

A memory and the call's own tokens are two sources; nothing is concatenated in time, so a memory that gets no gradient costs
no backward dots. Every mechanism at the attention site says which keys exist and which may be seen; this file does the rest.

B stream, T query time, S source time, N query heads, K kv heads, G = N / K, H head dim.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.memory.base import Dims, Segment
from memtx.nn.linear import Linear
from memtx.nn.positions import alibi_slopes, rope, t5_bucket

BLOCK = 128  # queries at a time: fits the scores of a block into cache; measured in experiments/speed
MASKED = -1e30


@dataclasses.dataclass(frozen=True)
class Source:
    """Keys and values that queries may see: those that are valid and 0 <= age < window, age = query position - key position.

    k_BSKH, v_BSKH un-rotated; position_BS int32; valid_BS bool
    query_position_BT  where queries stand for this source, if not at their place in the document
    window             how far back a query sees; None: without end
    lead               a promise that saves work: key j is at least `lead + t - j` tokens older than query t
    """

    k_BSKH: Array
    v_BSKH: Array
    position_BS: Array
    valid_BS: Array
    query_position_BT: Array | None = None
    window: int | None = None
    lead: int | None = None

    def visible(self, start: int, stop: int) -> slice:
        """The keys that queries start..stop-1 can possibly see."""
        size = self.k_BSKH.shape[1]
        if self.lead is None:
            return slice(0, size)
        first = 0 if self.window is None else max(0, self.lead + start - self.window + 1)
        return slice(min(first, size), min(size, self.lead + stop))


def attend(q_BTNH: Array, sources: list[Source], seg: Segment, dims: Dims) -> Array:
    """softmax(q k^T / sqrt(H) + position bias) v over all sources together -> [B, T, N, H] in q's dtype.

    A query that sees no key at all (padding) gives finite values that mean nothing.
    """
    batch, time, num_heads, head_dim = q_BTNH.shape
    group = num_heads // dims.num_kv_heads
    prepared = []
    for source in sources:
        at_BT = seg.position_BT if source.query_position_BT is None else source.query_position_BT
        origin_B1 = at_BT[:, :1]  # near the queries of this source: a sink's stand at its end of the document
        q, k = q_BTNH, source.k_BSKH.astype(q_BTNH.dtype)
        if dims.position == "rope":
            q, k = rope(q, at_BT - origin_B1, dims.rope_base), rope(k, source.position_BS - origin_B1, dims.rope_base)
        q_BKGTH = (q * head_dim**-0.5).reshape(batch, time, -1, group, head_dim).transpose(0, 2, 3, 1, 4)
        v_BKSH = source.v_BSKH.astype(q.dtype).transpose(0, 2, 1, 3)
        prepared.append((source, at_BT, q_BKGTH, k.transpose(0, 2, 3, 1), v_BKSH))

    blocks = []
    for start in range(0, time, BLOCK):
        stop = min(start + BLOCK, time)
        scores, values = [], []
        for source, at_BT, q_BKGTH, k_BKHS, v_BKSH in prepared:
            seen = source.visible(start, stop)
            if seen.start >= seen.stop:
                continue
            q = q_BKGTH[:, :, :, start:stop]
            score = jnp.einsum("BKGTH,BKHS->BKGTS", q, k_BKHS[..., seen], preferred_element_type=jnp.float32)
            age_BTS = at_BT[:, start:stop, None] - source.position_BS[:, None, seen]
            score += position_bias(age_BTS, seg, dims)
            mask_BTS = source.valid_BS[:, None, seen] & (age_BTS >= 0)
            if source.window is not None:
                mask_BTS &= age_BTS < source.window
            scores.append(jnp.where(mask_BTS[:, None, None], score, MASKED))
            values.append(v_BKSH[:, :, seen])
        weights = jax.nn.softmax(jnp.concatenate(scores, -1), -1).astype(q_BTNH.dtype)
        ends = [0]
        for score in scores:
            ends.append(ends[-1] + score.shape[-1])
        blocks.append(
            sum(
                jnp.einsum("BKGTS,BKSH->BKGTH", weights[..., a:b], v)
                for a, b, v in zip(ends, ends[1:], values, strict=False)
            )
        )
    out_BKGTH = jnp.concatenate(blocks, 3)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(batch, time, num_heads, head_dim)


def position_bias(age_BTS: Array, seg: Segment, dims: Dims) -> Array | float:
    """What is added to the scores [B, K, G, T, S]: ALiBi's slope * -age, T5's bucketed table, or nothing."""
    if dims.position == "alibi":
        slope_KG = alibi_slopes(dims.num_heads).reshape(dims.num_kv_heads, -1)
        return -slope_KG[:, :, None, None] * jnp.maximum(age_BTS, 0)[:, None, None].astype(jnp.float32)
    if dims.position == "t5":
        table = seg.shared["relative_bias"].astype(jnp.float32)  # [buckets, N], one leaf of the model
        bias = jnp.moveaxis(table[t5_bucket(age_BTS)], -1, 1)
        return bias.reshape(bias.shape[0], dims.num_kv_heads, -1, *bias.shape[2:])
    return 0.0


class Projections(nnx.Module):
    """The q, k, v and output maps around an attention-site memory."""

    def __init__(self, key: Array, dims: Dims, *, bias: bool = False):
        q, kv, out = jax.random.split(key, 3)
        self.dims = dims
        self.q = Linear(q, dims.width, dims.num_heads * dims.head_dim, bias=bias)
        self.kv = Linear(kv, dims.width, 2 * dims.num_kv_heads * dims.head_dim, bias=bias)
        self.out = Linear(out, dims.num_heads * dims.head_dim, dims.width, bias=bias)

    def heads(self, x_BTD: Array) -> tuple[Array, Array, Array]:
        """-> q_BTNH, k_BTKH, v_BTKH"""
        batch, time, _ = x_BTD.shape
        q = self.q(x_BTD).reshape(batch, time, self.dims.num_heads, self.dims.head_dim)
        k, v = jnp.split(self.kv(x_BTD).reshape(batch, time, 2 * self.dims.num_kv_heads, self.dims.head_dim), 2, 2)
        return q, k, v

    def merge(self, y_BTNH: Array) -> Array:
        return self.out(y_BTNH.reshape(*y_BTNH.shape[:2], -1))
