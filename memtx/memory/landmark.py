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

Source: Mohtashami & Jaggi 2023 (arXiv 2305.16300). Deviations: see the card; no token is inserted into the text.
B stream, T time, Q queries of a grid block, C tokens in a block, N query heads, K kv heads, H head dim, R neighbours.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from memtx.errors import UserError, positive
from memtx.memory import bank
from memtx.memory.bank import Bank
from memtx.memory.base import Dims, Segment, emit, pytree, scan, wants, where_rows
from memtx.nn.attention import MASKED
from memtx.nn.positions import alibi_slopes, rope, t5_bucket
from memtx.ops.grid import Grid, skip_if_empty
from memtx.ops.rows import put


@pytree
class Blocks:
    """Finished blocks (key: landmark [K, H]; value: k and v, [K, C, H]), and the block that is under way."""

    bank: Bank
    k_BCKH: Array
    v_BCKH: Array
    offset_B: Array  # tokens in it


class Landmark(nnx.Module):
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
        full = bank.rows(bank.empty(c.memory, landmark, {"k": tokens, "v": tokens}), batch_size)
        current = (batch_size, c.block, heads, head_dim)
        return Blocks(full, jnp.zeros(current), jnp.zeros(current), jnp.zeros(batch_size, jnp.int32))

    def __call__(self, x, state: Blocks, seg: Segment, *, key: Array | None = None):
        q, k, v = x
        if k is None:  # every query stands where the next token will
            slot_BT = jnp.broadcast_to(state.offset_B[:, None], q.shape[:2])
            y, reads = self.read(q, slot_BT, slot_BT - 1, state, seg)
            self.report(reads)
            return y, state
        grid = Grid(seg.mask_BT, state.offset_B, self.config.block)

        def work(state: Blocks, block):
            q_BQNH, k_BQKH, v_BQKH, position_BQ, valid_BQ, slot_BQ, complete_B = block
            slot = jnp.where(valid_BQ, slot_BQ, self.config.block)
            state = dataclasses.replace(state, k_BCKH=put(state.k_BCKH, slot, k_BQKH), v_BCKH=put(state.v_BCKH, slot, v_BQKH))
            y, reads = self.read(q_BQNH, slot_BQ, slot_BQ, state, seg)
            full = jax.vmap(self.write)(state, complete_B, seg.source_B, position_BQ[:, 0] - slot_BQ[:, 0])
            return self.begin(dataclasses.replace(state, bank=full), complete_B), (y, reads)

        packed = (*map(grid.pack, (q, k, v, seg.position_BT)), grid.valid_KBQ, grid.slot_KBQ, grid.complete_KB)
        state, outs = scan(lambda s, block: skip_if_empty(block[4], work, s, block), state, packed)
        y, reads = jax.tree.map(grid.unpack, outs)
        self.report(reads)
        return y, dataclasses.replace(state, offset_B=grid.offset_B)

    def write(self, state: Blocks, complete, source, position) -> Bank:
        """One stream's bank after its block, if that is complete."""
        k_CKH, size = state.k_BCKH, self.config.block
        weight_CK = jax.nn.softmax(jnp.einsum("CKH,KH->CK", k_CKH, self.pool[...]) * self.dims.scale, 0)
        landmark = jnp.einsum("CK,CKH->KH", weight_CK, k_CKH)
        value = {"k": self.turn(k_CKH[None], jnp.arange(size)[None])[0], "v": state.v_BCKH}
        value = jax.tree.map(lambda a: a.swapaxes(0, 1)[None], value)
        return bank.write(state.bank, landmark[None], value, mask_T=complete[None], source=source, position=position)

    def begin(self, state: Blocks, complete_B: Array) -> Blocks:
        """An empty block where one was completed."""
        current = (state.k_BCKH, state.v_BCKH)
        k, v = where_rows(complete_B, jax.tree.map(jnp.zeros_like, current), current, (0, 0))
        return dataclasses.replace(state, k_BCKH=k, v_BCKH=v)

    def read(self, q_BQNH: Array, slot_BQ: Array, last_BQ: Array, state: Blocks, seg: Segment):
        """The grouped softmax of queries at places slot_BQ of the block under way, which they see up to last_BQ."""
        size, groups = self.config.block, self.dims.num_heads // self.dims.num_kv_heads
        wide = (q_BQNH * self.dims.scale).astype(jnp.float32)
        k, v = (jnp.repeat(a, groups, 2) for a in (state.k_BCKH, state.v_BCKH))
        place_C = jnp.arange(size)
        own = jnp.einsum("BQNH,BCNH->BQNC", self.turn(wide, slot_BQ), self.turn(k, place_C[None]))
        own = own + self.bias(slot_BQ[:, :, None, None] - place_C, seg)
        own = jnp.where((place_C <= last_BQ[:, :, None])[:, :, None], own, MASKED)

        asked = self.turn(wide, slot_BQ + 1)  # the age of a landmark at the end of the block before
        landmark, value, index, found = self.retrieve(asked, state.bank)
        gate = jnp.einsum("BQNH,BQNRH->BQNR", asked, landmark) + self.bias(slot_BQ[:, :, None, None] + 1, seg)
        p = jax.nn.softmax(jnp.concatenate([own, jnp.where(found, gate, MASKED)], -1), -1)
        p_own, p_block = p[..., :size], p[..., size:] * found

        labels = bank.gather(state.bank, index)
        reads = {name: jnp.where(found, getattr(labels, name), -1) for name in ("id", "source", "position")}
        ago = ((reads["id"][..., None, :] >= reads["id"][..., None]) & found[..., None, :]).sum(-1, dtype=jnp.int32)
        start = slot_BQ[:, :, None, None] + size * ago  # tokens since the block began
        each = jnp.broadcast_to(wide[..., None, :], landmark.shape)
        turned = self.turn(each.reshape(len(wide), -1, 1, wide.shape[-1]), start.reshape(len(wide), -1)).reshape(each.shape)
        score = jnp.einsum("BQNRH,BQNRCH->BQNRC", turned, value["k"])
        inside = jax.nn.softmax(score + self.bias(start[..., None] - place_C, seg), -1) * p_block[..., None]
        y = jnp.einsum("BQNC,BCNH->BQNH", p_own, v) + jnp.einsum("BQNRC,BQNRCH->BQNH", inside, value["v"])
        return y.astype(q_BQNH.dtype), reads | {"weight": p_block}

    def retrieve(self, asked_BQNH: Array, full: Bank):
        """Each query's best blocks: landmark, tokens, slots, and whether there is one. Empty banks cost nothing."""
        head_N1 = jnp.arange(self.dims.num_heads)[:, None] // (self.dims.num_heads // self.dims.num_kv_heads)

        def work(asked, full):
            score, index = bank.search(full, asked, self.config.neighbours)
            read = bank.gather(full, index, head_N1)
            return read.key, read.value, index, score > -jnp.inf

        def skip(*args):
            return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(work, *args))

        return lax.cond((full.cursor > 0).any(), work, skip, lax.stop_gradient(asked_BQNH), full)

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
