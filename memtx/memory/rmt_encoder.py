"""RMT's encoder form: memory tokens before each segment of a body that sees all of a segment (`bidirectional` layers).

    [m' ; y] = body([m ; x])            x: n tokens of a segment, m: M memory tokens, m': the body's outputs at m
    m <- norm m'                        at the end of each segment. m starts at a learned value in each document

Such a segment cannot be split over calls, so each call is cut into segments from its first token. A shorter rest at the end is
also a segment. Calls of a multiple of n tokens therefore give the same result as one call. The state of the layers inside is
fresh in each segment.

Everything is differentiable. Gradients pass through the memory tokens until the caller detaches the state. The backward
pass recomputes each segment (remat). Deviation: RMT has a norm for m', as in rmt.py.

Source: Bulatov et al. 2022 (arXiv 2207.06881), 2023 (2304.11062).
B stream, T time, P segments, C tokens of a segment, M memory tokens, I tokens of an inner call, D model.
"""

import jax
import jax.numpy as jnp
from jax import Array

from memtx.core import Dims, Layer, Memory, Segment, rematerialised, scan, where_rows
from memtx.memory.rmt import Tokens
from memtx.memory.segmented import Segmented
from memtx.nn.linear import Norm, normal
from memtx.ops.grid import skip_if_empty


class RMTEncoder(Memory):
    """Body site: x_BTD -> x_BTD around `body`, segment by segment."""

    site = "body"
    kind = "fixed memory tokens"
    entries = False
    block = "bidirectional"
    causal = False

    Config = Segmented.Config
    tiny = (Config(segment=5, memory=2, remat=False),)

    def __init__(self, config: Segmented.Config, dims: Dims, key: Array, body: Layer):
        self.config, self.width, self.body = config, dims.width, body
        self.initial = normal(key, (config.memory, dims.width), 1.0, optim="no_decay")
        self.norm = Norm("rms", dims.width)

    def init_state(self, batch_size: int) -> Tokens:
        """Return the memory tokens before the first segment."""
        return Tokens.empty(batch_size, self.config.memory, self.width)

    def local_position(self, position_BT: Array) -> Array:
        """Return the positions at which learned embeddings are read: they count from 0 in each segment of a call."""
        return jnp.broadcast_to(jnp.arange(position_BT.shape[1]) % self.config.segment, position_BT.shape)

    def __call__(self, x_BTD: Array, state: Tokens, seg: Segment, *, key: Array | None = None):
        """Read the call's tokens segment by segment: x_BTD -> y_BTD."""
        batch, time, width = x_BTD.shape
        size = min(self.config.segment, time)
        segments = -(-time // size)

        def cut(a_BT):  # [B, T, ...] -> [P, B, C, ...]
            padded = jnp.pad(a_BT, ((0, 0), (0, segments * size - time)) + ((0, 0),) * (a_BT.ndim - 2))
            return padded.reshape(batch, segments, size, *a_BT.shape[2:]).swapaxes(0, 1)

        def work(state: Tokens, part):
            x_BCD, token_BC, length_B, index = part
            segment_key = None if key is None else jax.random.fold_in(key, index)
            return self.segment(x_BCD, token_BC, length_B, state, seg, segment_key)

        def step(state: Tokens, part):
            return skip_if_empty(part[2] > 0, rematerialised(work) if self.config.remat else work, state, part)

        token_BT = jnp.zeros_like(seg.position_BT) if seg.token_BT is None else seg.token_BT
        length_PB = jnp.clip(seg.length_B - size * jnp.arange(segments)[:, None], 0, size)
        state, y_PBCD = scan(step, state, (cut(x_BTD), cut(token_BT), length_PB, jnp.arange(segments)))
        return y_PBCD.swapaxes(0, 1).reshape(batch, segments * size, width)[:, :time], state

    def segment(self, x_BCD: Array, token_BC: Array, length_B: Array, state: Tokens, seg: Segment, key: Array | None):
        """Read one segment of `length_B` tokens. Returns the state and y_BCD. Rows without a token keep their state."""
        memory = self.config.memory
        x_BID = jnp.concatenate([state.read(self.initial[...]).astype(x_BCD.dtype), x_BCD], 1)
        inner = seg.replace(
            position_BT=jnp.broadcast_to(jnp.arange(x_BID.shape[1]), x_BID.shape[:2]),
            length_B=memory + length_B,
            reset_B=jnp.zeros_like(seg.reset_B),
            token_BT=jnp.pad(token_BC, ((0, 0), (memory, 0))),
        )
        y_BID, _ = self.body(x_BID, self.body.init_state(len(x_BCD)), inner, key=key)
        after = state.write(self.norm(y_BID[:, :memory].astype(jnp.float32)))
        return where_rows(length_B > 0, after, state), y_BID[:, memory:]
