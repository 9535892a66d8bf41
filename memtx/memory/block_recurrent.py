"""Block-Recurrent Transformer: a window, and state vectors that cross-attend to each block of tokens, like a wide LSTM cell.

    s = norm(S) + ids                                          K, V of s, and K, V of x, are each shared by both directions
    tokens   y = [window attention(x, x) ; attention(x Wq', s)] Wo                        S from the start of the block
    states   h = [attention(s Wq, s) ; attention(s Wq', x of the last `blocks` blocks)]   when a block ends
             z = h W + b
    gate     fixed   S' = g S + (1 - g) z ,  g = sig(keep)                                the paper's best ("fixed, skip")
             lstm    S' = sig(f + 1) S + sig(i - 1) tanh(z) ,  with z, i, f three maps of h
    scores   q k / sqrt(H), or with `normalize` |c_h| q k / (|q| |k|): a learned c per head for each of the four queries

S starts at a learned value, drawn from N(0, 0.1^2). The ids are learned too, drawn from N(0, 1), so that slots differ.

Everything is differentiable. Gradients pass through the window and through S until the caller detaches the state. The
attentions to and from S have no positions. The tokens of an unfinished block are in the window, so the state has nothing else.

Deviations: the window slides, has exactly `window` tokens, and its cache can carry gradient. The paper's previous segment
carries none. z goes into the gate directly (the paper's "skip" form), and states have no feed-forward network. A reset at the
start of a document clears the state, and the states do not read blocks before it. The authors' code reads zeros there.

Source: Hutchins et al. 2022 (arXiv 2203.07852). The authors' code, google-research/meliad.
B stream, T time, Q slots of a part of a block, C block, R keys that the states read, M window, S state vectors, N query heads,
K kv heads, H head dim, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from memtx.core import Dims, Memory, Segment, pytree, segment
from memtx.errors import UserError, check_known, positive
from memtx.memory.window import Recent
from memtx.nn.attention import KeySet, Origin, attend
from memtx.nn.linear import Linear, Norm, normal, unit
from memtx.nn.reads import NOWHERE, without_reads
from memtx.ops.chunks import ChunkPart, change_rows, in_chunks
from memtx.ops.rows import put, take


@pytree
class Recurrence:
    """The state vectors, and the window with the unfinished block."""

    state_BSD: Array  # not read in a row that has read nothing: the learned initial value takes its place
    window: Recent


@pytree
class Block:
    """The values carried within a call: state vectors, keys and values of the last blocks, and number of finished blocks.

    The unfinished block is the last `block` of the R entries.
    """

    state_BSD: Array
    k_BRKH: Array
    v_BRKH: Array
    before_B: Array


class Queries(Linear):
    """The map x_BTD -> q_BTNH. With `normalize`, queries have a learned length for each head, 1 at first."""

    def __init__(self, key: Array, dims: Dims, normalize: bool):
        super().__init__(key, dims.width, dims.num_heads * dims.head_dim)
        self.num_heads = dims.num_heads
        self.scale = nnx.Param(jnp.ones(dims.num_heads), optim="no_decay") if normalize else None

    def __call__(self, x_BTD: Array) -> Array:
        """Return q_BTNH."""
        q_BTNH = super().__call__(x_BTD).reshape(*x_BTD.shape[:2], self.num_heads, -1)
        return q_BTNH if self.scale is None else unit(q_BTNH) * jnp.abs(self.scale[...])[:, None].astype(q_BTNH.dtype)


class BlockRecurrent(Memory):
    """Residual site: x_BTD -> x_BTD."""

    site = "residual"
    kind = "ring of keys and values, and state vectors"

    @classmethod
    def preset_layers(cls, layers: int) -> tuple[int, ...]:
        """Return the single layer that the paper gives this mechanism."""
        return (3 * layers // 4,)

    @dataclasses.dataclass(frozen=True)
    class Config:
        """The settings of a Block-Recurrent layer."""

        block: int = 128  # tokens between two changes of the state
        window: int = 256  # tokens that a query sees, itself included
        states: int = 128  # state vectors
        gate: str = "fixed"  # fixed | lstm
        blocks: int = 2  # blocks that the states read when a block ends, that block included
        normalize: bool = False  # keys and queries to length 1, and a learned scale per head instead of 1 / sqrt(H)

        def __post_init__(self):
            positive(self, "block", "window", "states", "blocks")
            check_known(self.gate, ("fixed", "lstm"), "gate")
            if self.window < self.block:
                raise UserError(f"window={self.window} must be at least block={self.block}")

        @property
        def read(self) -> int:
            """The number of tokens that the state vectors read."""
            return self.blocks * self.block

        @property
        def kept(self) -> int:
            """The number of tokens whose keys and values the state keeps."""
            return max(self.window, self.read)

    tiny = (
        Config(block=4, window=5, states=3),
        Config(block=4, window=5, states=3, blocks=1, normalize=True),
    )

    def __init__(self, config: Config, dims: Dims, key: Array):
        keys = jax.random.split(key, 13)
        inner, kv_inner, width = dims.num_heads * dims.head_dim, dims.num_kv_heads * dims.head_dim, dims.width
        queries = (Queries(k, dims, config.normalize) for k in (keys[0], keys[1], keys[3], keys[4]))
        self.config = config
        self.dims = dataclasses.replace(dims, score_scale=1.0) if config.normalize else dims
        self.unplaced = dataclasses.replace(self.dims, position="none")
        self.q, self.q_cross, self.q_state, self.q_state_cross = queries
        self.k, self.v = Linear(keys[2], width, kv_inner), Linear(keys[11], width, kv_inner)
        self.k_state, self.v_state = Linear(keys[5], width, kv_inner), Linear(keys[12], width, kv_inner)
        self.out = Linear(keys[6], 2 * inner, width, shard="in")
        self.update = Linear(keys[7], 2 * inner, width if config.gate == "fixed" else 3 * width, bias=True)
        self.initial = normal(keys[8], (config.states, width), 0.1, optim="no_decay")
        self.ids = normal(keys[9], (config.states, width), 1.0, optim="no_decay")
        self.norm = Norm("rms", width)
        if config.gate == "fixed":
            self.keep = normal(keys[10], (width,), 0.1, optim="no_decay")

    def init_state(self, batch_size: int) -> Recurrence:
        """Return the state of rows that have read nothing."""
        zeros = jnp.zeros((batch_size, self.config.states, self.dims.width))
        return Recurrence(zeros, Recent.empty(batch_size, self.config.kept, self.dims))

    def __call__(self, x_BTD, state: Recurrence, seg: Segment, *, key: Array | None = None):
        """Read the call's tokens: x_BTD -> y_BTD. The state vectors change at the end of each block."""
        c, recent = self.config, state.window
        q, q_cross = self.q(x_BTD), self.q_cross(x_BTD)
        k, v = self.keys_values(self.k(x_BTD), self.v(x_BTD))
        near = attend(q, [recent.keys(c.window), KeySet.call(k, v, seg, window=c.window)], seg, self.dims)

        def step(block: Block, tokens, part: ChunkPart):
            q, k, v = tokens
            block = with_tokens(block, k, v, part, c.block)
            s_BSD = self.named(block.state_BSD, x_BTD.dtype)
            kv_state = self.keys_values(self.k_state(s_BSD), self.v_state(s_BSD))
            y = self.look(q, *kv_state)
            return change_rows(part.ends_B, lambda block: self.change(block, s_BSD, kv_state), block), y

        first = jnp.broadcast_to(self.initial[...], state.state_BSD.shape)
        begun_BSD = jnp.where((recent.count_B == 0)[:, None, None], first, state.state_BSD)
        block = Block(begun_BSD, *self.last_blocks(recent), recent.count_B // c.block)
        far, block = in_chunks(c.block, step, (q_cross, k, v), block, recent.count_B % c.block, seg)

        y = jnp.concatenate([near, far], 2)
        read_B = (seg.length_B > 0)[:, None, None]
        after = Recurrence(jnp.where(read_B, block.state_BSD, state.state_BSD), recent.write(k, v, seg))
        return self.out(y.reshape(*x_BTD.shape[:2], -1)), after

    def last_blocks(self, recent: Recent) -> tuple[Array, Array]:
        """Return keys and values of the blocks that the state vectors read next. Entries after the newest token are invalid."""
        c = self.config
        newest_B1 = c.kept - recent.count_B[:, None] % c.block
        at_BR = jnp.minimum(newest_B1 + jnp.arange(c.read) - (c.read - c.block), c.kept - 1)
        return take(recent.k_BMKH, at_BR), take(recent.v_BMKH, at_BR)

    def named(self, state_BSD: Array, dtype) -> Array:
        """Return s = norm(S) + ids."""
        return (self.norm(state_BSD) + self.ids[...]).astype(dtype)

    def change(self, block: Block, s_BSD: Array, kv_state: tuple[Array, Array]) -> Block:
        """Return the new state vectors after a block has ended. kv_state: the keys and values of s."""
        k, v = (a.astype(s_BSD.dtype) for a in (block.k_BRKH, block.v_BRKH))
        read_BR = jnp.arange(-self.config.read, 0) >= -self.config.block * (1 + block.before_B[:, None])
        look = without_reads(self.look)  # the states read here, not the tokens
        within = look(self.q_state(s_BSD), *kv_state)
        across = look(self.q_state_cross(s_BSD), k, v, None if self.config.blocks == 1 else read_BR)
        h = jnp.concatenate([within, across], 2).reshape(*s_BSD.shape[:2], -1)
        z = self.update(h).astype(jnp.float32)
        old = block.state_BSD
        if self.config.gate == "fixed":
            keep = jax.nn.sigmoid(self.keep[...])
            new = keep * old + (1 - keep) * z
        else:
            z, i, f = jnp.split(z, 3, -1)
            new = jax.nn.sigmoid(f + 1) * old + jax.nn.sigmoid(i - 1) * jnp.tanh(z)
        k, v = (jnp.roll(a, -self.config.block, 1) for a in (block.k_BRKH, block.v_BRKH))
        return Block(new, k, v, block.before_B + 1)

    def look(self, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array, valid_BS: Array | None = None) -> Array:
        """Return the attention of every query to every valid key, without positions, [B, T, N, H]."""
        nowhere = jnp.zeros(k_BSKH.shape[:2], jnp.int32)
        everywhere = KeySet(k_BSKH, v_BSKH, nowhere, valid_BS, future=True, origin=Origin(NOWHERE))
        return attend(q_BTNH, [everywhere], segment(jnp.zeros(q_BTNH.shape[:2])), self.unplaced)

    def keys_values(self, k_BTE: Array, v_BTE: Array) -> tuple[Array, Array]:
        """Return k_BTKH and v_BTKH."""
        shape = (*k_BTE.shape[:2], self.dims.num_kv_heads, self.dims.head_dim)
        k = k_BTE.reshape(shape)
        return (unit(k) if self.config.normalize else k), v_BTE.reshape(shape)


def with_tokens(block: Block, k_BQKH: Array, v_BQKH: Array, part: ChunkPart, size: int) -> Block:
    """Write keys and values into the unfinished block, which has the last `size` slots."""
    slots = block.k_BRKH.shape[1]
    index_BQ = slots - size + part.slot_BQ + slots * ~part.valid_BQ  # slots without a token are out of range
    return dataclasses.replace(block, k_BRKH=put(block.k_BRKH, index_BQ, k_BQKH), v_BRKH=put(block.v_BRKH, index_BQ, v_BQKH))
