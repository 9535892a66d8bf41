"""Titans: a neural long-term memory beside, before or within attention (titans.py has the memory itself).

titans_mac  memory as context, in segments of `chunk` tokens:
                h_i = M_start(q(x_i))                          the weights at the segment's start, forward only
                y_i = Attention(x_i ; [P ; h_<=i ; x_<=i])     P: learned persistent tokens
                o_i = y_i (x) M_i(y_i)                         M learns from y. M_i: after token i
titans_mag  memory as gate:   y = WindowAttention([P ; x]),  o = y (x) M(x)
titans_mal  memory as layer:  y = M(x),  o = WindowAttention([P ; y])

    y (x) m = norm(y) * sig(norm(m))

Everything is differentiable, until the caller detaches the state.
Positions: attention uses distances within the segment or the window. h_j has the position of x_j. P is at distance 0 from
every query.

Deviations: MAC's M_i is the memory after token i, and x_i attends h up to i. In the paper's equations both reach to the end of
the segment, so a token would see its future. P is used only in attention. The learned first weights of the memory take the
place of learning from P at the start of every document. The cards list the choices that the paper leaves open.

Source: Behrouz et al. 2025 (arXiv 2501.00663).
B stream, T time, Q slots in a segment, C segment, S = 2 C, P persistent tokens, N query heads, K kv heads, H head dim, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.core import Dims, Memory, Segment, pytree, where_rows
from memtx.errors import positive
from memtx.memory.titans import Fast, NeuralMemory, Settings, apply, chunk_start, finish
from memtx.memory.window import Recent
from memtx.nn.attention import KeySet, Origin, Projections, attend
from memtx.nn.conv import ShortConv
from memtx.nn.linear import Linear, Norm, normal, unit
from memtx.nn.reads import NOWHERE, OWN
from memtx.ops.chunks import ChunkPart, in_chunks
from memtx.ops.rows import put


class Persistent(nnx.Module):
    """Attention with learned tokens that every query sees."""

    def __init__(self, key: Array, dims: Dims, tokens: int):
        attention, persistent = jax.random.split(key)
        self.dims = dims
        self.attention = Projections(attention, dims)
        self.tokens = normal(persistent, (tokens, dims.width), 1.0, optim="no_decay")

    def attend(self, q_BTNH: Array, sources: list[KeySet], seg: Segment) -> Array:
        """Return attention over the sources and the learned tokens, [B, T, D]."""
        k, v = self.attention.keys_values(self.tokens[...].astype(q_BTNH.dtype)[None])
        shape = (q_BTNH.shape[0], *k.shape[1:])
        nowhere, here = jnp.zeros(shape[:2], jnp.int32), jnp.zeros(q_BTNH.shape[:2], jnp.int32)
        k, v = jnp.broadcast_to(k, shape), jnp.broadcast_to(v, shape)
        always = KeySet(k, v, nowhere, nowhere == 0, query_position_BT=here, origin=Origin(NOWHERE))
        return self.attention.merge(attend(q_BTNH, [always, *sources], seg, self.dims))


class Gate(nnx.Module):
    """The gate y (x) m = norm(y) * sig(norm(m)) of y and m, both [B, T, D]."""

    def __init__(self, width: int):
        self.y_norm, self.m_norm = Norm("rms", width), Norm("rms", width)

    def __call__(self, y_BTD: Array, m_BTD: Array) -> Array:
        """Return y (x) m."""
        return self.y_norm(y_BTD) * jax.nn.sigmoid(self.m_norm(m_BTD))


@dataclasses.dataclass(frozen=True)
class Windowed(Settings):
    """The settings of MAG and MAL."""

    window: int = 256  # tokens that a query sees, itself included
    persistent: int = 4  # learned tokens that every query sees

    def __post_init__(self):
        super().__post_init__()
        positive(self, "window", "persistent")


class MemoryAndWindow(Memory):
    """The parts of MAG and MAL: a memory and window attention. The state is (memory state, window state)."""

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
        """Return the state of rows that have read nothing."""
        return self.memory.init_state(batch_size), Recent.empty(batch_size, self.config.window, self.dims)

    def window(self, x_BTD: Array, recent: Recent, seg: Segment) -> tuple[Array, Recent]:
        """Return window attention over x, [B, T, D], and the window's new state."""
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
        """Read the tokens of the call and learn from them: x_BTD -> o_BTD."""
        memory, recent = state
        y_BTD, recent = self.window(x_BTD, recent, seg)
        m_BTD, memory = self.memory(x_BTD, memory, seg)
        return self.gate(y_BTD, m_BTD), (memory, recent)


class MAL(MemoryAndWindow):
    """Residual site: window attention over the memory's output."""

    def __call__(self, x_BTD: Array, state, seg: Segment, *, key: Array | None = None):
        """Read the tokens of the call and learn from them: x_BTD -> o_BTD."""
        memory, recent = state
        y_BTD, memory = self.memory(x_BTD, memory, seg)
        o_BTD, recent = self.window(y_BTD, recent, seg)
        return o_BTD, (memory, recent)


@pytree
class Context:
    """MAC's memory, and the keys and values of the unfinished segment: those of h in the first C entries, then those of x."""

    fast: Fast
    tail: Array | tuple[()]  # of the convolution over y
    query_tail: Array | tuple[()]  # of the one over x
    k_BSKH: Array
    v_BSKH: Array

    def source(self) -> KeySet:
        """Return the keys and values of the segment. Slots that are not written yet have an age that hides them."""
        size = self.k_BSKH.shape[1] // 2
        position_BS = jnp.broadcast_to(jnp.tile(jnp.arange(size), 2), self.k_BSKH.shape[:2])
        of_x = Origin(jnp.where(jnp.arange(2 * size) < size, NOWHERE, OWN))
        return KeySet(self.k_BSKH, self.v_BSKH, position_BS, None, origin=of_x)


class MAC(Memory):
    """Residual site: attention within a segment, over its tokens and the memory's output for each."""

    site = "residual"
    kind = "fixed weights of an MLP"
    entries = False

    @dataclasses.dataclass(frozen=True)
    class Config(Settings):
        """The settings of MAC."""

        chunk: int = 64  # tokens of a segment. The memory's gradients are taken at the weights of its start
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
        """Return the state of rows that have read nothing."""
        fast, tail = self.memory.init_state(batch_size)
        query_tail = self.conv.init_state(batch_size)
        shape = (batch_size, 2 * self.config.chunk, self.dims.num_kv_heads, self.dims.head_dim)
        return Context(fast, tail, query_tail, jnp.zeros(shape), jnp.zeros(shape))

    def __call__(self, x_BTD: Array, state: Context, seg: Segment, *, key: Array | None = None):
        """Read the tokens of the call and learn from them: x_BTD -> o_BTD."""
        query, query_tail = self.conv(self.query(x_BTD), state.query_tail, seg.length_B)
        query_BTNH = unit(query.astype(jnp.float32).reshape(*x_BTD.shape[:2], self.dims.num_heads, -1))
        tokens = *self.near.attention.heads(x_BTD), query_BTNH
        context = dataclasses.replace(state, fast=self.memory.initialise(state.fast), query_tail=query_tail)

        def step(context, tokens_BQ, part):
            return self.step(context, tokens_BQ, part, seg)

        o_BTD, after = in_chunks(self.config.chunk, step, tokens, context, state.fast.offset_B, seg, remat=True)
        fast = finish(state.fast, after.fast, seg, self.config.chunk)
        return o_BTD, dataclasses.replace(after, fast=fast)

    def step(self, context: Context, tokens, part: ChunkPart, seg: Segment) -> tuple[Context, Array]:
        """Read one part of a segment and learn from it. Returns the new context and o_BQD."""
        q, k, v, query_BQNH = tokens
        read_BQNH = apply(chunk_start(context.fast, part), query_BQNH.swapaxes(1, 2))
        h_k, h_v = self.near.attention.keys_values(self.memory.merge(read_BQNH.swapaxes(1, 2), q.dtype))
        context = write(context, (h_k, h_v), (k, v), part)
        y_BQD = self.near.attend(q, [context.source()], seg.replace(position_BT=jnp.asarray(part.slot_BQ)))
        learned, tail = self.memory.project(y_BQD, context.tail, part.length_B)
        fast, m_BQNH = self.memory.step(context.fast, learned, part)
        o_BQD = self.gate(y_BQD, self.memory.merge(m_BQNH, y_BQD.dtype))
        context = dataclasses.replace(context, fast=fast, tail=tail)
        return empty(context, part.ends_B), o_BQD


def write(context: Context, h: tuple[Array, Array], x: tuple[Array, Array], part: ChunkPart) -> Context:
    """Write the keys and values of h and of x, each [B, Q, K, H], at their slots of the segment."""
    size = context.k_BSKH.shape[1] // 2
    index_BQ = part.slot_BQ + 2 * size * ~part.valid_BQ  # slots without a token are out of range, so they are dropped
    k, v = (put(old, index_BQ, new) for old, new in zip((context.k_BSKH, context.v_BSKH), h, strict=True))
    k, v = (put(old, index_BQ + size, new) for old, new in zip((k, v), x, strict=True))
    return dataclasses.replace(context, k_BSKH=k, v_BSKH=v)


def empty(context: Context, ends_B: Array) -> Context:
    """Return the context without keys and values in rows whose segment has ended."""
    keys_values = context.k_BSKH, context.v_BSKH
    k, v = where_rows(ends_B, jax.tree.map(jnp.zeros_like, keys_values), keys_values)
    return dataclasses.replace(context, k_BSKH=k, v_BSKH=v)
