"""Titans: a neural long-term memory beside, before or within attention (titans.py has the memory itself).

titans_mac  memory as context, in segments of `chunk` tokens:
                h_i = M_start(q(x_i))                          the weights at the segment's start, forward only
                y_i = Attention(x_i ; [P ; h_<=i ; x_<=i])     P: learned persistent tokens
                M learns from y ;  o_i = y_i (x) M_i(y_i)      M_i: after token i
titans_mag  memory as gate:   y = WindowAttention([P ; x]) ;  o = y (x) M(x)
titans_mal  memory as layer:  y = M(x) ;  o = WindowAttention([P ; y])

    y (x) m = norm(y) * sig(norm(m))

What is differentiable: everything, as far back as the caller's `detach` lets it.
Position policy: attention by distance within the segment or the window; h_j stands where x_j does; P is at no distance.

Deviations: MAC's M_i is the memory after token i, and x_i attends h up to i. In the paper's equations both reach to the end of
the segment, which would tell a token its future. P enters attention only: what the memory would learn from it at the start of
every document is part of its learned first weights. The cards say what else the paper leaves open.

Source: Behrouz et al. 2025 (arXiv 2501.00663).
B stream, T time, Q slots in a segment, C segment, S = 2 C, P persistent tokens, N query heads, K kv heads, H head dim, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.core import Dims, Memory, Segment, pytree, rematerialised
from memtx.errors import positive
from memtx.memory.titans import Fast, NeuralMemory, Settings, apply, settle, starts
from memtx.memory.window import Recent
from memtx.nn.attention import KeySet, Projections, attend
from memtx.nn.conv import ShortConv
from memtx.nn.linear import Linear, Norm, normal, unit
from memtx.ops.chunks import Place, in_chunks
from memtx.ops.rows import put


class Persistent(nnx.Module):
    """Attention with learned tokens that every query sees."""

    def __init__(self, key: Array, dims: Dims, tokens: int):
        attention, persistent = jax.random.split(key)
        self.dims = dims
        self.attention = Projections(attention, dims)
        self.tokens = normal(persistent, (tokens, dims.width), 1.0, optim="no_decay")

    def attend(self, q_BTNH: Array, sources: list[KeySet], seg: Segment) -> Array:
        k, v = self.attention.keys_values(self.tokens[...].astype(q_BTNH.dtype)[None])
        shape = (q_BTNH.shape[0], *k.shape[1:])
        nowhere, here = jnp.zeros(shape[:2], jnp.int32), jnp.zeros(q_BTNH.shape[:2], jnp.int32)
        always = KeySet(jnp.broadcast_to(k, shape), jnp.broadcast_to(v, shape), nowhere, nowhere == 0, query_position_BT=here)
        return self.attention.merge(attend(q_BTNH, [always, *sources], seg, self.dims))


class Gate(nnx.Module):
    """y (x) m: norm(y) * sig(norm(m))"""

    def __init__(self, width: int):
        self.y_norm, self.m_norm = Norm("rms", width), Norm("rms", width)

    def __call__(self, y_BTD: Array, m_BTD: Array) -> Array:
        return self.y_norm(y_BTD) * jax.nn.sigmoid(self.m_norm(m_BTD))


@dataclasses.dataclass(frozen=True)
class Windowed(Settings):
    window: int = 256  # tokens that a query sees, itself included
    persistent: int = 4  # learned tokens that every query sees

    def __post_init__(self):
        super().__post_init__()
        positive(self, "window", "persistent")


class MemoryAndWindow(Memory):
    """What MAG and MAL are made of; the state is (the memory's, the window's)."""

    site = "residual"
    kind = "fixed weights of an MLP, and a ring of keys and values"
    entries = False
    Config = Windowed
    tiny = (Windowed(chunk=4, window=5, persistent=2),)

    def __init__(self, config: Windowed, dims: Dims, key: Array):
        memory, near = jax.random.split(key)
        self.config, self.dims = config, dims
        self.memory = NeuralMemory(config, dims, memory)
        self.near = Persistent(near, dims, config.persistent)

    def init_state(self, batch_size: int):
        return self.memory.init_state(batch_size), Recent.empty(batch_size, self.config.window, self.dims)

    def window(self, x_BTD: Array, recent: Recent, seg: Segment) -> tuple[Array, Recent]:
        attention, size = self.near.attention, self.config.window
        q, (k, v) = attention.queries(x_BTD), attention.keys_values(x_BTD)
        y_BTD = self.near.attend(q, [recent.keys(size), KeySet.call(k, v, seg, window=size)], seg)
        return y_BTD, recent.write(k, v, seg)


class MAG(MemoryAndWindow):
    """Residual site: the memory gates window attention."""

    def __init__(self, config: Windowed, dims: Dims, key: Array):
        super().__init__(config, dims, key)
        self.gate = Gate(dims.width)

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        memory, recent = state
        y_BTD, recent = self.window(x_BTD, recent, seg)
        m_BTD, memory = self.memory(x_BTD, memory, seg)
        return self.gate(y_BTD, m_BTD), (memory, recent)


class MAL(MemoryAndWindow):
    """Residual site: window attention over what the memory put out."""

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        memory, recent = state
        y_BTD, memory = self.memory(x_BTD, memory, seg)
        o_BTD, recent = self.window(y_BTD, recent, seg)
        return o_BTD, (memory, recent)


@pytree
class Context:
    """MAC's memory, and the keys and values of the segment under way: those of h in the first C entries, then those of x."""

    fast: Fast
    tail: Array | tuple[()]  # of the convolution over y
    query_tail: Array | tuple[()]  # of the one over x
    k_BSKH: Array
    v_BSKH: Array


class MAC(Memory):
    """Residual site: attention within a segment, with what the memory has to say to each of its tokens."""

    site = "residual"
    kind = "fixed weights of an MLP"
    entries = False

    @dataclasses.dataclass(frozen=True)
    class Config(Settings):
        chunk: int = 64  # tokens of a segment; the memory's gradients are taken at the weights of its start
        persistent: int = 4  # learned tokens that every query sees

        def __post_init__(self):
            super().__post_init__()
            positive(self, "persistent")

    tiny = (Config(chunk=4, persistent=2),)

    def __init__(self, config: Config, dims: Dims, key: Array):
        memory, near, query, conv = jax.random.split(key, 4)
        self.config, self.dims = config, dims
        inner = dims.num_heads * dims.head_dim
        self.memory = NeuralMemory(config, dims, memory)
        self.near = Persistent(near, dims, config.persistent)
        self.query, self.conv = Linear(query, dims.width, inner), ShortConv(conv, inner, config.conv)
        self.gate = Gate(dims.width)

    def init_state(self, batch_size: int) -> Context:
        fast, tail = self.memory.init_state(batch_size)
        query_tail = self.conv.init_state(batch_size)
        shape = (batch_size, 2 * self.config.chunk, self.dims.num_kv_heads, self.dims.head_dim)
        return Context(fast, tail, query_tail, jnp.zeros(shape), jnp.zeros(shape))

    def __call__(self, x_BTD: Array, state: Context, seg: Segment, *, key: Array | None = None):
        query, query_tail = self.conv(self.query(x_BTD), state.query_tail, seg.length_B)
        query_BTNH = unit(query.astype(jnp.float32).reshape(*x_BTD.shape[:2], self.dims.num_heads, -1))
        tokens = *self.near.attention.heads(x_BTD), query_BTNH
        warm = dataclasses.replace(state, fast=self.memory.warm(state.fast), query_tail=query_tail)

        def step(context, tokens_BQ, place):
            return self.step(context, tokens_BQ, place, seg)

        o_BTD, after = in_chunks(self.config.chunk, rematerialised(step), tokens, warm, state.fast.offset_B, seg)
        fast = settle(state.fast, after.fast, seg, self.config.chunk)
        return o_BTD, dataclasses.replace(after, fast=fast)

    def step(self, context: Context, tokens, place: Place | None, seg: Segment) -> tuple[Context, Array]:
        """A segment, or a part of one."""
        q, k, v, query_BQNH = tokens
        batch, slots = q.shape[:2]
        read_BNQH = apply(starts(context.fast, place), query_BQNH.swapaxes(1, 2))
        h_k, h_v = self.near.attention.keys_values(self.memory.merge(read_BNQH.swapaxes(1, 2), q.dtype))
        if place is None:
            slot_BQ = jnp.broadcast_to(jnp.arange(slots), (batch, slots))
            length_B = jnp.full(batch, slots)
            sources = [KeySet.call(*kv, seg) for kv in ((h_k, h_v), (k, v))]
        else:
            slot_BQ, length_B = place.slot_BQ, place.valid_BQ.sum(1, dtype=jnp.int32)
            context, source = write(context, (h_k, k), (h_v, v), place)
            sources = [source]
        y_BQD = self.near.attend(q, sources, seg.replace(position_BT=slot_BQ))
        learned, tail = self.memory.project(y_BQD, context.tail, length_B)
        fast, m_BQNH = self.memory.step(context.fast, learned, place)
        o_BQD = self.gate(y_BQD, self.memory.merge(m_BQNH, y_BQD.dtype))
        return dataclasses.replace(context, fast=fast, tail=tail), o_BQD


def write(context: Context, k: tuple[Array, Array], v: tuple[Array, Array], place: Place) -> tuple[Context, KeySet]:
    """The segment so far as a source, with keys and values of h and of x added, and what is left of it after the block."""
    size = context.k_BSKH.shape[1] // 2
    index_BQ = jnp.where(place.valid_BQ, place.slot_BQ, 2 * size)  # out of range: dropped
    index_BQ = jnp.concatenate([index_BQ, index_BQ + size], 1)
    k_BSKH, v_BSKH = (put(old, index_BQ, jnp.concatenate(new, 1)) for old, new in ((context.k_BSKH, k), (context.v_BSKH, v)))
    position_BS = jnp.broadcast_to(jnp.tile(jnp.arange(size), 2), k_BSKH.shape[:2])  # later slots hide behind their age
    over_B = place.complete_B[:, None, None, None]
    context = dataclasses.replace(context, k_BSKH=jnp.where(over_B, 0, k_BSKH), v_BSKH=jnp.where(over_B, 0, v_BSKH))
    return context, KeySet(k_BSKH, v_BSKH, position_BS, position_BS >= 0)
