"""Landmark attention: each block of the past has a landmark key, which gates the values that are read from the block.

    a_j = softmax_j(w_h . k_j / sqrt(H)) over the tokens of block b ;  landmark_b = sum_j a_j k_j
    p = softmax over { q k_j : j in the query's own block, j <= t } and { q landmark_b : b retrieved }
    y = sum_j p_j v_j + sum_b p_b sum_(j in b) softmax_(j in b)(q k_j) v_j                      (grouped softmax)

Each query and head retrieves the `neighbours` finished blocks whose landmarks have the highest scores, of the last `memory`
blocks. If it retrieves all of them, this is the grouped softmax over all tokens.

Positions never exceed those of training. The retrieved blocks get positions, in order of time, as if they came just before the
query's block. A landmark is scored as if its block came immediately before the query's. The keys of a block are stored in the
bank rotated to their slots 0..C-1, which are the same for every query.

Everything is differentiable except the choice of blocks. Gradients pass into the bank until the caller detaches the state. In
training, a read keeps `neighbours` x `block` keys and values per query and head.

All blocks of a call are read at once. They are written first, and each query sees the last `memory` ids before the id of its
block. The bank therefore has AHEAD more entries than `memory`, and longer calls are read in pieces of AHEAD blocks.

Source: Mohtashami & Jaggi 2023 (arXiv 2305.16300). Deviations: see the card. No token is inserted into the text.
B stream, T time, J blocks of a call, Q queries in one, C tokens in a block, N query heads, K kv heads, H head dim,
R neighbours.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import ArrayLike

from memtx.core import Dims, Memory, Segment, pytree
from memtx.errors import UserError, positive
from memtx.memory import bank
from memtx.memory.bank import Bank, Holder
from memtx.nn.attention import position_bias
from memtx.nn.positions import rope
from memtx.nn.reads import ATTENTION, KIND, emit_reads, reads
from memtx.ops.attention import MASKED
from memtx.ops.grid import Grid
from memtx.ops.rows import put, take

AHEAD = 16  # blocks written before they are read


@pytree
class Blocks(Holder):
    """Finished blocks, whose key is a landmark [K, H] and whose value is k and v [K, C, H], and the unfinished block."""

    bank: Bank
    k_BCKH: Array
    v_BCKH: Array
    offset_B: Array  # tokens in the unfinished block


@dataclasses.dataclass(frozen=True)
class Queries:
    """The queries of a call, in one sequence of slots.

    q_BTNH   float32, scaled, un-rotated
    slot_BT  the index of the query in its block
    last_BT  the last slot of its block that it sees
    id_BT    the id of its block
    """

    q_BTNH: Array
    slot_BT: Array
    last_BT: Array
    id_BT: Array


class Landmark(Memory):
    """Attention to retrieved blocks, at the attention site."""

    site = "attention"
    resizable = ("memory",)
    kind = "bank of blocks of keys and values"
    readable = False  # `pool` makes the landmarks

    @dataclasses.dataclass(frozen=True)
    class Config:
        block: int = 32  # tokens of a block
        memory: int = 256  # blocks kept
        neighbours: int = 4  # blocks that each query and head reads

        def __post_init__(self):
            positive(self, "block", "memory", "neighbours")
            if self.neighbours > self.memory:
                raise UserError(f"neighbours={self.neighbours} is more than memory={self.memory}")

    tiny = (Config(block=3, memory=3, neighbours=2),)

    @classmethod
    def reading(cls, config: Config, tokens: int) -> Config:
        return dataclasses.replace(config, memory=max(-(-tokens // config.block), config.neighbours))

    @classmethod
    def answering(cls, config: Config, entries: int) -> Config:
        return dataclasses.replace(config, memory=entries + config.memory)

    def __init__(self, config: Config, dims: Dims, key: Array):
        self.config, self.dims = config, dims
        self.pool = nnx.Param(jnp.zeros((dims.num_kv_heads, dims.head_dim)), optim="no_decay")

    def init_state(self, batch_size: int) -> Blocks:
        c, heads, head_dim = self.config, self.dims.num_kv_heads, self.dims.head_dim
        landmark = jax.ShapeDtypeStruct((heads, head_dim), jnp.float32)
        tokens = jax.ShapeDtypeStruct((heads, c.block, head_dim), jnp.float32)
        full = bank.rows(bank.empty(c.memory + AHEAD, landmark, {"k": tokens, "v": tokens}), batch_size)
        current = (batch_size, c.block, heads, head_dim)
        return Blocks(full, jnp.zeros(current), jnp.zeros(current), jnp.zeros(batch_size, jnp.int32))

    def __call__(self, x, state: Blocks, seg: Segment, *, key: Array | None = None):
        q, k, _ = x
        if k is None:  # every query has the position of the next token
            slot_BT = jnp.broadcast_to(state.offset_B[:, None], q.shape[:2])
            asked = self.queries(q, slot_BT, slot_BT - 1, jnp.broadcast_to(state.bank.cursor[:, None], q.shape[:2]))
            y, found = self.read(asked, state.k_BCKH[:, None], state.v_BCKH[:, None], state.bank, seg)
        else:
            y, found, state = self.read_and_write(x, state, seg)
        for kind, read in zip((KIND, ATTENTION), found, strict=True):
            emit_reads(read, kind=kind)
        bank.emit_use(state.bank, found[0], seg)  # the position of an entry is that of its first token
        return y.astype(q.dtype), state

    def read_and_write(self, x, state: Blocks, seg: Segment):
        """Read and write a call in pieces that fit into the bank. Returns y_BTNH, the reads and the new state."""
        size, outs = AHEAD * self.config.block, []
        for start in range(0, seg.position_BT.shape[1], size):
            *qkv, position_BT, mask_BT = (a[:, start : start + size] for a in (*x, seg.position_BT, seg.mask_BT))
            y, found, state = self.piece(qkv, position_BT, mask_BT, state, seg)
            outs.append((y, found))
        return *jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *outs), state

    def piece(self, x, position_BT: Array, mask_BT: Array, state: Blocks, seg: Segment):
        """Read and write all blocks at once. Complete blocks are written first. Queries see ids below that of their block."""
        q, k, v = x
        size, grid = self.config.block, Grid(mask_BT, state.offset_B, self.config.block)
        at_BT = jnp.where(mask_BT, state.offset_B[:, None] + jnp.arange(mask_BT.shape[1]), (grid.blocks + 1) * size)

        def line(current_BC, new_BT):
            """Return the unfinished block and the call as blocks [B, J + 1, C, ...]. The last block stays empty."""
            rest = jnp.zeros((len(current_BC), grid.blocks * size, *current_BC.shape[2:]), current_BC.dtype)
            return put(jnp.concatenate([current_BC, rest], 1), at_BT, new_BT).reshape(len(rest), -1, *current_BC.shape[1:])

        k, v = line(state.k_BCKH, k), line(state.v_BCKH, v)
        q, position, slot = (jnp.moveaxis(a, 0, 1) for a in (grid.pack(q), grid.pack(position_BT), grid.slot_KBQ))
        first = position[..., 0] - slot[..., 0]
        full = jax.vmap(self.write)(state.bank, k[:, :-1], v[:, :-1], grid.complete_KB.T, seg.document_B, first)
        id_BJ = state.bank.cursor[:, None] + jnp.arange(grid.blocks)
        in_line = lambda a_BJQ: a_BJQ.reshape(len(a_BJQ), -1, *a_BJQ.shape[3:])  # noqa: E731
        asked = self.queries(in_line(q), in_line(slot), in_line(slot), jnp.repeat(id_BJ, grid.slots, 1))
        out = self.read(asked, k[:, :-1], v[:, :-1], full, seg)
        y, found = jax.tree.map(lambda a: grid.unpack(jnp.moveaxis(a.reshape(*slot.shape, *a.shape[2:]), 1, 0)), out)
        under_way_B1 = (state.offset_B + mask_BT.sum(1, dtype=jnp.int32))[:, None] // size
        k, v = (take(a, under_way_B1)[:, 0] for a in (k, v))
        return y, found, Blocks(full, k, v, grid.offset_B)

    def write(self, full: Bank, k_JCKH: Array, v_JCKH: Array, complete_J, document, position_J) -> Bank:
        """Return the bank of one stream with the complete ones among J blocks added."""
        weight_JCK = jax.nn.softmax(jnp.einsum("JCKH,KH->JCK", k_JCKH, self.pool[...]) * self.dims.scale, 1)
        landmark = jnp.einsum("JCK,JCKH->JKH", weight_JCK, k_JCKH)
        slot_JC = jnp.broadcast_to(jnp.arange(self.config.block), k_JCKH.shape[:2])
        value = {"k": self.turn(k_JCKH, slot_JC).swapaxes(1, 2), "v": v_JCKH.swapaxes(1, 2)}
        return bank.write(full, landmark, value, mask_T=complete_J, document=document, position=position_J)

    def queries(self, q_BTNH: Array, slot_BT: Array, last_BT: Array, id_BT: Array) -> Queries:
        """Return queries in float32, scaled."""
        return Queries(q_BTNH.astype(jnp.float32) * self.dims.scale, slot_BT, last_BT, id_BT)

    def read(self, asked: Queries, k_BJCKH: Array, v_BJCKH: Array, full: Bank, seg: Segment):
        """Return y_BTNH by the grouped softmax, and the reads of blocks and of the query's own block, as (Reads, Reads).

        k and v: of the blocks of the call.
        """
        own_BTNC = self.own_scores(asked, k_BJCKH, seg)
        block, gate_BTNR = self.retrieve(asked, full, seg)
        found_BTNR, size = gate_BTNR > MASKED, self.config.block
        p = jax.nn.softmax(jnp.concatenate([own_BTNC, gate_BTNR], -1), -1)
        p_own_BTNC, p_block_BTNR = p[..., :size], p[..., size:] * found_BTNR
        far = bank.reads(block, p_block_BTNR, found_BTNR, size)
        near = reads(p_own_BTNC, position=(jnp.arange(size) - asked.slot_BT[..., None])[:, :, None])
        p_inside_BTNRC = jax.nn.softmax(self.inside_scores(asked, block, far.id_BTNR, seg), -1)
        v_BJCNH = jnp.repeat(v_BJCKH, self.groups, 3)
        y_BJQNH = jnp.einsum("BJQNC,BJCNH->BJQNH", in_blocks(p_own_BTNC, v_BJCNH.shape[1]), v_BJCNH)
        y_BTNH = jnp.einsum("BTNRC,BTNRCH->BTNH", p_inside_BTNRC * p_block_BTNR[..., None], block.value["v"])
        return y_BJQNH.reshape(y_BTNH.shape) + y_BTNH, (far, near)

    def own_scores(self, asked: Queries, k_BJCKH: Array, seg: Segment) -> Array:
        """Return the scores of the keys in each query's block, [B, T, N, C], masked after the last key that the query sees."""
        batch, blocks, size = k_BJCKH.shape[:3]
        slot_C = jnp.arange(size)
        key_slot = jnp.broadcast_to(jnp.tile(slot_C, blocks), (batch, blocks * size))
        k_BSNH = self.turn(jnp.repeat(k_BJCKH, self.groups, 3).reshape(batch, blocks * size, -1, self.dims.head_dim), key_slot)
        q_BJQNH = in_blocks(self.turn(asked.q_BTNH, asked.slot_BT), blocks)
        score_BJQNC = jnp.einsum("BJQNH,BJCNH->BJQNC", q_BJQNH, in_blocks(k_BSNH, blocks))
        score_BTNC = score_BJQNC.reshape(batch, -1, *score_BJQNC.shape[3:]) + self.bias(asked.slot_BT[..., None] - slot_C, seg)
        return jnp.where((slot_C <= asked.last_BT[..., None])[:, :, None], score_BTNC, MASKED)

    def retrieve(self, asked: Queries, full: Bank, seg: Segment):
        """Return the entries of the best blocks of each query and head, and their landmarks' scores, [B, T, N, R] or MASKED."""
        age_BT = asked.slot_BT + 1  # of a landmark at the end of the block before
        q_BTNH = self.turn(asked.q_BTNH, age_BT)
        first_BT = asked.id_BT - self.config.memory
        score, index = bank.search(full, q_BTNH, self.config.neighbours, first_BT=first_BT, end_BT=asked.id_BT)
        block = bank.gather(full, index, jnp.arange(self.dims.num_heads)[:, None] // self.groups)
        gate_BTNR = jnp.einsum("BTNH,BTNRH->BTNR", q_BTNH, block.key) + self.bias(age_BT[..., None], seg)
        return block, jnp.where(score > -jnp.inf, gate_BTNR, MASKED)

    def inside_scores(self, asked: Queries, block, id_BTNR: Array, seg: Segment) -> Array:
        """Return the scores of the keys in the blocks that were read, [B, T, N, R, C].

        The blocks follow one another in order of time and end just before the query's block.
        """
        (batch, time, heads, count), size = id_BTNR.shape, self.config.block
        found = id_BTNR >= 0
        ago_BTNR = ((id_BTNR[..., None, :] >= id_BTNR[..., None]) & found[..., None, :]).sum(-1, dtype=jnp.int32)
        start_BTNR = asked.slot_BT[..., None, None] + size * ago_BTNR  # tokens since the block began
        q_BTNRH = jnp.broadcast_to(asked.q_BTNH[..., None, :], (*id_BTNR.shape, asked.q_BTNH.shape[-1]))
        turned = self.turn(q_BTNRH.reshape(batch, -1, 1, q_BTNRH.shape[-1]), start_BTNR.reshape(batch, -1))
        score_BTNRC = jnp.einsum("BTNRH,BTNRCH->BTNRC", turned.reshape(q_BTNRH.shape), block.value["k"])
        age_BTRC = asked.slot_BT[..., None, None] + size * jnp.arange(1, count + 1)[:, None] - jnp.arange(size)
        bias_BTNRC = self.bias(age_BTRC.reshape(batch, time, -1), seg)  # of the block that began 1, 2, ... blocks ago
        if isinstance(bias_BTNRC, Array):
            bias_BTNRC = bias_BTNRC.reshape(batch, time, heads, count, size)
            bias_BTNRC = jnp.take_along_axis(bias_BTNRC, jnp.maximum(ago_BTNR - 1, 0)[..., None], 3)
        return score_BTNRC + bias_BTNRC

    @property
    def groups(self) -> int:
        """The number of query heads per key head."""
        return self.dims.num_heads // self.dims.num_kv_heads

    def turn(self, x_BTNH: Array, position_BT: Array) -> Array:
        """Return x rotated to its position, if the model has rotary positions."""
        if self.dims.position != "rope":
            return x_BTNH
        return rope(x_BTNH, position_BT, self.dims.rope_base, self.dims.rope_scaling)

    def bias(self, age_BTS: Array, seg: Segment) -> ArrayLike:
        """Return ALiBi's or T5's bias, [B, T, N, S], or 0."""
        bias_BNTS = position_bias(age_BTS, False, seg, self.dims)
        return bias_BNTS.swapaxes(1, 2) if isinstance(bias_BNTS, Array) else bias_BNTS


def in_blocks(a_BT: Array, blocks: int) -> Array:
    """Cut a sequence of slots into blocks: [B, J Q, ...] -> [B, J, Q, ...]."""
    return a_BT.reshape(len(a_BT), blocks, -1, *a_BT.shape[2:])
