"""Block-Recurrent Transformer: a window, and state vectors that cross-attend to each block of tokens, like a wide LSTM cell.

    s = norm(S) + ids ;  K, V of s, and K, V of x: each shared by both directions
    tokens   y = [window attention(x, x) ; attention(x Wq', s)] Wo                        S as it was when the block began
    states   h = [attention(s Wq, s) ; attention(s Wq', x of the block)] ;  z = h W + b   at the end of each block of tokens
    gate     fixed   S' = g S + (1 - g) z ,  g = sig(keep)                                the paper's best ("fixed, skip")
             lstm    S' = sig(f + 1) S + sig(i - 1) tanh(z) ,  with z, i, f three maps of h
    S starts at a learned value; ids are learned, so that slots differ.

What is differentiable: everything, through the window and through S as far back as the caller's `detach` lets it. The
attentions to and from S have no positions. A block under way is in the window's keys and values, so nothing else is kept.

Deviations: the window is a sliding one, of exactly `window` tokens, in a cache that can carry gradient (the paper's previous
segment is without); z goes into the gate directly (the paper's "skip" form), there is no feed-forward network on states; the
state is cleared at the start of a document.

Source: Hutchins et al. 2022 (arXiv 2203.07852).
B stream, T time, Q slots of a block of the grid, C block, M window, S state vectors, N query heads, K kv heads, H head dim,
D model.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from memtx.errors import UserError, check_known, positive
from memtx.memory.base import Dims, Segment, pytree, segment, where_rows
from memtx.memory.window import Recent, own
from memtx.nn.attention import Source, attend
from memtx.nn.linear import Linear, Norm, normal
from memtx.ops.chunks import Place, in_chunks
from memtx.ops.rows import put, take


@pytree
class Recurrence:
    state_BSD: Array  # in a row that has read nothing, the learned initial value stands for it
    window: Recent


@pytree
class Block:
    """Within a call: state vectors, and the keys and values of the block under way."""

    state_BSD: Array
    k_BCKH: Array
    v_BCKH: Array


class BlockRecurrent(nnx.Module):
    """Residual site: x_BTD -> x_BTD."""

    site = "residual"
    kind = "ring of keys and values, and state vectors"
    place = staticmethod(lambda layers: (3 * layers // 4,))

    @dataclasses.dataclass(frozen=True)
    class Config:
        block: int = 128  # tokens between two changes of the state
        window: int = 256  # tokens that a query sees, itself included
        states: int = 128  # state vectors
        gate: str = "fixed"  # fixed | lstm

        def __post_init__(self):
            positive(self, "block", "window", "states")
            check_known(self.gate, ("fixed", "lstm"), "gate")
            if self.window < self.block:
                raise UserError(f"window={self.window} must hold a block: at least block={self.block}")

    tiny = (Config(block=4, window=5, states=3),)

    def __init__(self, config: Config, dims: Dims, key: Array):
        keys = jax.random.split(key, 11)
        inner, kv, width = dims.num_heads * dims.head_dim, 2 * dims.num_kv_heads * dims.head_dim, dims.width
        self.config, self.dims = config, dims
        self.unplaced = dataclasses.replace(dims, position="none")
        self.q, self.q_cross, self.kv = (Linear(k, width, n) for k, n in zip(keys[:3], (inner, inner, kv), strict=True))
        self.q_state, self.q_state_cross = Linear(keys[3], width, inner), Linear(keys[4], width, inner)
        self.kv_state = Linear(keys[5], width, kv)
        self.out = Linear(keys[6], 2 * inner, width)
        self.update = Linear(keys[7], 2 * inner, width if config.gate == "fixed" else 3 * width, bias=True)
        self.initial = normal(keys[8], (config.states, width), 1.0, optim="no_decay")
        self.ids = normal(keys[9], (config.states, width), 0.02, optim="no_decay")
        self.norm = Norm("rms", width)
        if config.gate == "fixed":
            self.keep = normal(keys[10], (width,), 0.1, optim="no_decay")

    def init_state(self, batch_size: int) -> Recurrence:
        zeros = jnp.zeros((batch_size, self.config.states, self.dims.width))
        return Recurrence(zeros, Recent.empty(batch_size, self.config.window, self.dims))

    def __call__(self, x_BTD, state: Recurrence, seg: Segment, *, key: Array | None = None):
        c, recent = self.config, state.window
        q, q_cross = self.heads(self.q(x_BTD)), self.heads(self.q_cross(x_BTD))
        k, v = self.keys_values(self.kv(x_BTD))
        near = attend(q, [recent.source(seg, c.window), own(k, v, seg, c.window)], seg, self.dims)

        def step(block: Block, tokens, place: Place | None):
            q, k, v = tokens
            if place is None:
                block = Block(block.state_BSD, k.astype(jnp.float32), v.astype(jnp.float32))
            else:
                slot = jnp.where(place.valid_BQ, place.slot_BQ, c.block)
                block = Block(block.state_BSD, put(block.k_BCKH, slot, k), put(block.v_BCKH, slot, v))
            s_BSD = self.named(block.state_BSD, x_BTD.dtype)
            kv_state = self.keys_values(self.kv_state(s_BSD))
            y = self.look(q, *kv_state)
            if place is None:
                return self.change(block, s_BSD, kv_state), y
            rows = jax.tree.map(lambda _: 0, block)
            change = lambda b: where_rows(place.complete_B, self.change(b, s_BSD, kv_state), b, rows)  # noqa: E731
            return lax.cond(place.complete_B.any(), change, lambda b: b, block), y

        first = jnp.broadcast_to(self.initial[...], state.state_BSD.shape)
        block = Block(jnp.where((recent.count_B == 0)[:, None, None], first, state.state_BSD), *self.under_way(recent))
        far, block = in_chunks(c.block, step, (q_cross, k, v), block, recent.count_B % c.block, seg)

        y = jnp.concatenate([near, far], 2)
        read_B = (seg.length_B > 0)[:, None, None]
        after = Recurrence(jnp.where(read_B, block.state_BSD, state.state_BSD), recent.write(k, v, seg))
        return self.out(y.reshape(*x_BTD.shape[:2], -1)), after

    def under_way(self, recent: Recent) -> tuple[Array, Array]:
        """Keys and values of the unfinished block in slots 0..offset-1, from the end of the window; what follows is junk."""
        size = self.config.block
        offset_B1 = recent.count_B[:, None] % size
        at_BC = jnp.minimum(self.config.window - offset_B1 + jnp.arange(size), self.config.window - 1)
        return take(recent.k_BMKH, at_BC), take(recent.v_BMKH, at_BC)

    def named(self, state_BSD: Array, dtype) -> Array:
        return (self.norm(state_BSD) + self.ids[...]).astype(dtype)

    def change(self, block: Block, s_BSD: Array, kv_state: list[Array]) -> Block:
        """What a whole block of tokens makes of the state; kv_state: the state's own keys and values."""
        k, v = (a.astype(s_BSD.dtype) for a in (block.k_BCKH, block.v_BCKH))
        within = self.look(self.heads(self.q_state(s_BSD)), *kv_state)
        across = self.look(self.heads(self.q_state_cross(s_BSD)), k, v)
        h = jnp.concatenate([within, across], 2).reshape(*s_BSD.shape[:2], -1)
        z = self.update(h).astype(jnp.float32)
        old = block.state_BSD
        if self.config.gate == "fixed":
            keep = jax.nn.sigmoid(self.keep[...])
            new = keep * old + (1 - keep) * z
        else:
            z, i, f = jnp.split(z, 3, -1)
            new = jax.nn.sigmoid(f + 1) * old + jax.nn.sigmoid(i - 1) * jnp.tanh(z)
        return Block(new, block.k_BCKH, block.v_BCKH)

    def look(self, q_BTNH: Array, k_BSKH: Array, v_BSKH: Array) -> Array:
        """Attention of every query to every key, without positions."""
        everywhere = Source(k_BSKH, v_BSKH, jnp.zeros(k_BSKH.shape[:2], jnp.int32), None, future=True)
        return attend(q_BTNH, [everywhere], segment(jnp.zeros(q_BTNH.shape[:2])), self.unplaced)

    def heads(self, q_BTE: Array) -> Array:
        return q_BTE.reshape(*q_BTE.shape[:2], self.dims.num_heads, self.dims.head_dim)

    def keys_values(self, kv_BTE: Array) -> list[Array]:
        return jnp.split(kv_BTE.reshape(*kv_BTE.shape[:2], 2 * self.dims.num_kv_heads, self.dims.head_dim), 2, 2)
