"""Infini-attention: attention within a segment, and a matrix of all the segments before it, mixed by a gate per head.

    s(x) = elu(x) + 1
    A_mem = s(Q) M / (s(Q) z)                                              read before write, 0 from an empty memory
    at the end of a segment, with the M and z from before it:
        linear   M <- M + s(K)^T V                          z <- z + sum_t s(K_t)
        delta    M <- M + s(K)^T (V - s(K) M / (s(K) z))    z <- z + sum_t s(K_t)
    O = sig(b) A_mem + (1 - sig(b)) A_local                                b: one scalar per query head;
                                                                       tanh instead of sig if the gate starts closed

Everything is differentiable, through all segments, until the caller detaches the state.

Positions: M sees un-rotated queries and keys. Local attention uses distances. A segment has `segment` tokens of a document
for all cuts into calls. The state sums up the terms that the unfinished segment will add to M.

Deviations: query heads that share a key head share its M and z. The state is cleared at the start of a document. The gate
gets no weight decay and learns `gate_lr` times as fast. Without this, the gate stays near its first value, as in published
attempts.

Source: Munkhdalai et al. 2024 (arXiv 2404.07143). The gate follows Hugging Face's account of an attempt to reproduce it.
B stream, T time, Q slots in a block, C segment, N query heads, K kv heads, G = N / K, R = G Q rows, H head dim.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.core import Dims, Memory, Segment, emit, pytree, wants
from memtx.errors import UserError, positive
from memtx.memory.inspect import Inspectable
from memtx.nn.attention import KeySet, attend
from memtx.nn.linear import elu_plus_one
from memtx.nn.reads import KIND, emit_gate, with_share
from memtx.ops.chunks import ChunkPart, change_rows, in_chunks
from memtx.ops.rows import shift

EPSILON = 1e-6


@pytree
class Sums:
    """s(K)^T V and sum s(K), in float32."""

    matrix_BKHH: Array
    norm_BKH: Array


@pytree
class Compressed(Inspectable):
    """The memory of finished segments, the terms that the unfinished one will add, and its keys and values, newest last."""

    memory: Sums
    pending: Sums
    k_BCKH: Array
    v_BCKH: Array
    offset_B: Array  # tokens in the unfinished segment

    @property
    def matrices(self) -> tuple[Array]:
        """Return the matrix of finished segments (see `Inspectable`)."""
        return (self.memory.matrix_BKHH,)


class Infini(Memory):
    """Attention within a segment and to a matrix of earlier ones, at the attention site."""

    site = "attention"
    kind = "fixed matrix"
    entries = False

    @dataclasses.dataclass(frozen=True)
    class Config:
        segment: int = 512  # tokens between two writes, and the reach of local attention
        rule: str = "delta"  # delta | linear
        gate_lr: float = 10.0  # learning rate of the gates, as a multiple

        def __post_init__(self):
            positive(self, "segment")
            if self.rule not in ("delta", "linear"):
                raise UserError(f"rule must be delta or linear, not {self.rule!r}")

    tiny = (Config(segment=4),)

    def __init__(self, config: Config, dims: Dims, key: Array):
        self.config, self.dims = config, dims
        self.gate = nnx.Param(jnp.zeros(dims.num_heads), optim="no_decay", lr=config.gate_lr)

    def init_state(self, batch_size: int) -> Compressed:
        heads, size = self.dims.num_kv_heads, self.dims.head_dim

        def sums():
            return Sums(jnp.zeros((batch_size, heads, size, size)), jnp.zeros((batch_size, heads, size)))

        recent = (batch_size, self.config.segment, heads, size)
        return Compressed(sums(), sums(), jnp.zeros(recent), jnp.zeros(recent), jnp.zeros(batch_size, jnp.int32))

    def __call__(self, x, state: Compressed, seg: Segment, *, key: Array | None = None):
        q, k, v = x
        local_BTNH, emit_local = with_share(self.local, q, k, v, state, seg)
        if k is None:
            remote_BTNH = self.grouped_read(q, state.memory)
        else:
            remote_BTNH, state = self.remote(q, k, v, state, seg)
        gate_N = self.dims.gate(self.gate[...])
        if wants("metric"):
            emit("metric/gate", gate_N)
        if wants(KIND):
            emit_gate(gate_N, q.shape[:3])
        emit_local(1 - gate_N)
        y = gate_N[:, None] * remote_BTNH + (1 - gate_N[:, None]) * local_BTNH.astype(jnp.float32)
        return y.astype(q.dtype), state

    def local(self, q_BTNH, k_BTKH, v_BTKH, state: Compressed, seg: Segment) -> Array:
        """Attend to the query's own segment, up to the query."""
        size = self.config.segment
        segment_BT = (state.offset_B[:, None] + jnp.arange(q_BTNH.shape[1])) // size  # 0 is the unfinished one
        begun_BC = jnp.arange(size) >= size - state.offset_B[:, None]
        before = KeySet.recent(state.k_BCKH, state.v_BCKH, begun_BC, window=size, often_empty=True)
        sets = [before.within_chunks(segment_BT, jnp.zeros_like(begun_BC, jnp.int32))]
        if k_BTKH is not None:
            sets.append(KeySet.call(k_BTKH, v_BTKH, seg, window=size).within_chunks(segment_BT, segment_BT))
        return attend(q_BTNH, sets, seg, self.dims)

    def remote(self, q_BTNH, k_BTKH, v_BTKH, state: Compressed, seg: Segment) -> tuple[Array, Compressed]:
        """Return A_mem of every token, in float32, and the state after the call."""

        def close(carry):
            memory, pending = carry
            return jax.tree.map(jnp.add, memory, pending), jax.tree.map(jnp.zeros_like, pending)

        def step(carry, block, part: ChunkPart):
            memory, pending = carry
            q, k, v = block
            y_BQNH = self.grouped_read(q, memory)
            k_BKQH, v_BKQH = (a.astype(jnp.float32).swapaxes(1, 2) for a in (k, v))
            s_BKQH = elu_plus_one(k_BKQH)
            if self.config.rule == "delta":
                v_BKQH = v_BKQH - read(s_BKQH, memory)
            s_BKQH = jnp.where(part.valid_BQ[:, None, :, None], s_BKQH, 0)
            matrix_BKHH = pending.matrix_BKHH + jnp.einsum("BKQH,BKQI->BKHI", s_BKQH, v_BKQH)
            pending = Sums(matrix_BKHH, pending.norm_BKH + s_BKQH.sum(2))
            return change_rows(part.ends_B, close, (memory, pending)), y_BQNH

        carry = state.memory, state.pending
        y_BTNH, (memory, pending) = in_chunks(self.config.segment, step, (q_BTNH, k_BTKH, v_BTKH), carry, state.offset_B, seg)
        k_BCKH, v_BCKH = (shift(*both, seg.length_B) for both in ((state.k_BCKH, k_BTKH), (state.v_BCKH, v_BTKH)))
        offset_B = (state.offset_B + seg.length_B) % self.config.segment
        return y_BTNH, Compressed(memory, pending, k_BCKH, v_BCKH, offset_B)

    def grouped_read(self, q_BQNH: Array, memory: Sums) -> Array:
        """Return A_mem in float32, [B, Q, N, H]. Each query head reads the memory of its key head."""
        shape = (*q_BQNH.shape[:2], self.dims.num_kv_heads, -1, self.dims.head_dim)
        q_BKGQH = q_BQNH.astype(jnp.float32).reshape(shape).transpose(0, 2, 3, 1, 4)
        y_BKRH = read(elu_plus_one(q_BKGQH.reshape(*q_BKGQH.shape[:2], -1, self.dims.head_dim)), memory)  # plain matmuls
        return y_BKRH.reshape(q_BKGQH.shape).transpose(0, 3, 1, 2, 4).reshape(q_BQNH.shape)


def read(s_BKRH: Array, memory: Sums) -> Array:
    """Return s M / (s z), or 0 from an empty memory."""
    return s_BKRH @ memory.matrix_BKHH / jnp.maximum(s_BKRH @ memory.norm_BKH[..., None], EPSILON)
