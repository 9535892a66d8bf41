"""Landmark attention: a landmark key stands for each block of the past and gates what is read of it.

    a_j = softmax_j(w_h . k_j / sqrt(H)) over the tokens of block b ;  landmark_b = sum_j a_j k_j
    p = softmax over { q k_j : j in the query's own block, j <= t } and { q landmark_b : b retrieved }
    y = sum_j p_j v_j + sum_b p_b sum_(j in b) softmax_(j in b)(q k_j) v_j                      (grouped softmax)

Each query and head retrieves the `neighbours` finished blocks whose landmarks it likes best, of the last `memory` blocks;
with all of them retrieved this is the grouped softmax over everything.

Positions never grow past what training saw: the retrieved blocks stand, in order of time, as if they came right before the
query's own; a landmark is scored as if its block were the one before. A block's keys lie in the bank rotated to their places
0..C-1 in it, which are the same for every query.

What is differentiable: everything but the choice of blocks, into the bank too, as far as the caller's detach lets it. While
training, a read keeps `neighbours` x `block` keys and values per query and head.

All blocks of a call go at once: they are written first, and each query sees the last `memory` ids before its own block's, so
the bank has AHEAD slots more than `memory`, and longer calls go in pieces of as many blocks.

Source: Mohtashami & Jaggi 2023 (arXiv 2305.16300). Deviations: see the card; no token is inserted into the text.
B stream, T time, J blocks of a call, Q queries in one, C tokens in a block, N query heads, K kv heads, H head dim,
R neighbours.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.core import Dims, Memory, Segment, emit, pytree, wants
from memtx.errors import UserError, positive
from memtx.memory import bank
from memtx.memory.bank import Bank
from memtx.nn.positions import alibi_slopes, rope, t5_bucket
from memtx.ops.attention import MASKED
from memtx.ops.grid import Grid
from memtx.ops.rows import put, take

AHEAD = 16  # blocks written before they are read


@pytree
class Blocks:
    """Finished blocks (key: landmark [K, H]; value: k and v, [K, C, H]), and the block that is under way."""

    bank: Bank
    k_BCKH: Array
    v_BCKH: Array
    offset_B: Array  # tokens in it


class Landmark(Memory):
    """Attention site."""

    site = "attention"
    kind = "bank of blocks of keys and values"
    readable = False  # landmarks are made by `pool`

    @dataclasses.dataclass(frozen=True)
    class Config:
        block: int = 32  # tokens that a landmark stands for
        memory: int = 256  # blocks kept
        neighbours: int = 4  # blocks that each query and head reads

        def __post_init__(self):
            positive(self, "block", "memory", "neighbours")
            if self.neighbours > self.memory:
                raise UserError(f"neighbours={self.neighbours} is more than memory={self.memory} keeps")

    tiny = (Config(block=3, memory=3, neighbours=2),)

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
        q, k, v = x
        if k is None:  # every query stands where the next token will
            slot_BJQ = jnp.broadcast_to(state.offset_B[:, None, None], (len(q), 1, q.shape[1]))
            q, k, v = (a[:, None] for a in (q, state.k_BCKH, state.v_BCKH))
            out = self.read(q, k, v, slot_BJQ, slot_BJQ - 1, state.bank, state.bank.cursor[:, None], seg)
            y, reads = jax.tree.map(lambda a: a[:, 0], out)
        else:
            y, reads, state = self.read_and_write(x, state, seg)
        self.report(reads)
        return y, state

    def read_and_write(self, x, state: Blocks, seg: Segment):
        """In pieces whose blocks the bank has room for."""
        size, outs = AHEAD * self.config.block, []
        for start in range(0, seg.position_BT.shape[1], size):
            *qkv, position_BT, mask_BT = (a[:, start : start + size] for a in (*x, seg.position_BT, seg.mask_BT))
            y, reads, state = self.piece(qkv, position_BT, mask_BT, state, seg)
            outs.append((y, reads))
        return *jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *outs), state

    def piece(self, x, position_BT: Array, mask_BT: Array, state: Blocks, seg: Segment):
        """All blocks at once: finished ones are written first, and a query sees those with ids before its own block's."""
        q, k, v = x
        size, grid = self.config.block, Grid(mask_BT, state.offset_B, self.config.block)
        at_BT = jnp.where(mask_BT, state.offset_B[:, None] + jnp.arange(mask_BT.shape[1]), (grid.blocks + 1) * size)

        def line(current_BC, new_BT):
            """The block under way and the tokens of this call, in blocks; one more stays empty."""
            rest = jnp.zeros((len(current_BC), grid.blocks * size, *current_BC.shape[2:]), current_BC.dtype)
            return put(jnp.concatenate([current_BC, rest], 1), at_BT, new_BT).reshape(len(rest), -1, *current_BC.shape[1:])

        k, v = line(state.k_BCKH, k), line(state.v_BCKH, v)
        q, position, slot = (jnp.moveaxis(a, 0, 1) for a in (grid.pack(q), grid.pack(position_BT), grid.slot_KBQ))
        first = position[..., 0] - slot[..., 0]
        full = jax.vmap(self.write)(state.bank, k[:, :-1], v[:, :-1], grid.complete_KB.T, seg.document_B, first)
        id_BJ = state.bank.cursor[:, None] + jnp.arange(grid.blocks)
        out = self.read(q, k[:, :-1], v[:, :-1], slot, slot, full, id_BJ, seg)
        y, reads = jax.tree.map(lambda a: grid.unpack(jnp.moveaxis(a, 1, 0)), out)
        under_way_B1 = (state.offset_B + mask_BT.sum(1, dtype=jnp.int32))[:, None] // size
        k, v = (take(a, under_way_B1)[:, 0] for a in (k, v))
        return y, reads, Blocks(full, k, v, grid.offset_B)

    def write(self, full: Bank, k_JCKH: Array, v_JCKH: Array, complete_J, source, position_J) -> Bank:
        """One stream's bank after those of J blocks that are complete."""
        weight_JCK = jax.nn.softmax(jnp.einsum("JCKH,KH->JCK", k_JCKH, self.pool[...]) * self.dims.scale, 1)
        landmark = jnp.einsum("JCK,JCKH->JKH", weight_JCK, k_JCKH)
        place_JC = jnp.broadcast_to(jnp.arange(self.config.block), k_JCKH.shape[:2])
        value = {"k": self.turn(k_JCKH, place_JC).swapaxes(1, 2), "v": v_JCKH.swapaxes(1, 2)}
        return bank.write(full, landmark, value, mask_T=complete_J, source=source, position=position_J)

    def read(self, q_BJQNH, k_BJCKH, v_BJCKH, slot_BJQ, last_BJQ, full: Bank, id_BJ, seg: Segment):
        """The grouped softmax of queries at places slot_BJQ of blocks id_BJ, which they see up to last_BJQ, each its own."""
        batch, blocks, queries, heads, _ = q_BJQNH.shape
        size, groups = self.config.block, heads // self.dims.num_kv_heads
        flat = lambda a: a.reshape(batch, -1, *a.shape[3:])  # noqa: E731  # all blocks of a row in one line
        wide, slot = flat(q_BJQNH.astype(jnp.float32) * self.dims.scale), flat(slot_BJQ)
        place_C = jnp.arange(size)
        k, v = (jnp.repeat(a, groups, 3) for a in (k_BJCKH, v_BJCKH))
        k = self.turn(flat(k), jnp.broadcast_to(jnp.tile(place_C, blocks), (batch, blocks * size))).reshape(k.shape)
        own = jnp.einsum("BJQNH,BJCNH->BJQNC", self.turn(wide, slot).reshape(q_BJQNH.shape), k)
        own = flat(own) + self.bias(slot[:, :, None, None] - place_C, seg)
        own = jnp.where((place_C <= flat(last_BJQ)[:, :, None])[:, :, None], own, MASKED)

        asked = self.turn(wide, slot + 1)  # the age of a landmark at the end of the block before
        end_BT = jnp.repeat(id_BJ, queries, 1)
        score, index = bank.search(full, asked, self.config.neighbours, first_BT=end_BT - self.config.memory, end_BT=end_BT)
        found = score > -jnp.inf
        block = bank.gather(full, index, jnp.arange(heads)[:, None] // groups)
        gate = jnp.einsum("BTNH,BTNRH->BTNR", asked, block.key) + self.bias(slot[:, :, None, None] + 1, seg)
        p = jax.nn.softmax(jnp.concatenate([own, jnp.where(found, gate, MASKED)], -1), -1)
        p_own, p_block = p[..., :size], p[..., size:] * found

        reads = {name: jnp.where(found, getattr(block, name), -1) for name in ("id", "source", "position")}
        ago = ((reads["id"][..., None, :] >= reads["id"][..., None]) & found[..., None, :]).sum(-1, dtype=jnp.int32)
        start = slot[:, :, None, None] + size * ago  # tokens since the block began
        each = jnp.broadcast_to(wide[..., None, :], block.key.shape)
        turned = self.turn(each.reshape(batch, -1, 1, each.shape[-1]), start.reshape(batch, -1)).reshape(each.shape)
        score = jnp.einsum("BTNRH,BTNRCH->BTNRC", turned, block.value["k"])
        inside = jax.nn.softmax(score + self.bias(start[..., None] - place_C, seg), -1) * p_block[..., None]
        y = flat(jnp.einsum("BJQNC,BJCNH->BJQNH", p_own.reshape(*q_BJQNH.shape[:4], size), v))
        y = y + jnp.einsum("BTNRC,BTNRCH->BTNH", inside, block.value["v"])
        out = y.astype(q_BJQNH.dtype), reads | {"weight": p_block}
        return jax.tree.map(lambda a: a.reshape(batch, blocks, queries, *a.shape[2:]), out)

    def turn(self, x_BTNH: Array, position_BT: Array) -> Array:
        if self.dims.position != "rope":
            return x_BTNH
        return rope(x_BTNH, position_BT, self.dims.rope_base, self.dims.rope_scaling)

    def bias(self, age_BQN_: Array, seg: Segment):
        """ALiBi's or T5's bias; ages differ between heads, since each retrieves blocks of its own. Axis 2 is N or 1."""
        head_N = jnp.arange(self.dims.num_heads).reshape(-1, *(1,) * (age_BQN_.ndim - 3))
        if self.dims.position == "alibi":
            return -jnp.asarray(alibi_slopes(self.dims.num_heads))[head_N] * age_BQN_
        if self.dims.position == "t5":
            return seg.shared["relative_bias"].astype(jnp.float32)[t5_bucket(age_BQN_), head_N]
        return 0.0

    def report(self, reads: dict[str, Array]) -> None:
        """Which blocks were read, [B, T, N, R]: id (-1: none), source, position of the first token, weight."""
        if wants("attribution"):
            for name, value in reads.items():
                emit(f"attribution/{name}", value)
