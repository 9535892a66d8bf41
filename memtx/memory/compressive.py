"""Compressive Transformer: Transformer-XL whose oldest hidden states are compressed, c to 1, into a second memory.

    h~ = [SG(compressed) ; SG(memory) ; h]          attention as in Transformer-XL (xl.py), positions counted over all of h~
    at the end of each segment of n tokens:
    old = SG(the n oldest of memory) ;  memory <- last M of [memory ; h]
    compressed <- SG(last Mc of [compressed ; f_c(old)])             f_c: n hidden states -> n / c
    f_c   conv       c neighbours @ W: a convolution of width and stride c (the paper's best)
          mean, max  over c neighbours
          most_used  the n / c of old that this segment's queries attend to most, in order of time
    loss/compression = mean (attn(SG h, old) - attn(SG h, f_c(old)))^2        the attention reconstruction loss; attn: softmax
                       of contents alone, with the layer's own Wq, Wk, Wv as constants

Gradient: the language model's gradient is that of Transformer-XL and does not reach f_c. The auxiliary loss trains only f_c.
Each finished segment with a full memory adds to the loss, as a mean over rows, tokens and features. Training adds the emitted
loss to its own.

Deviations: usage (most_used) is the content attention of the segment that pushes the entries out, and not a sum over the time
that they were stored. Other deviations are those of xl.py.

Source: Rae et al. 2019 (arXiv 1911.05507).
B stream, T time, M memory slots, C segment, c rate, S compressed slots, U = C / c, N heads, H head dim, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from memtx.core import Dims, Segment, emit, pytree, wants
from memtx.errors import UserError, check_known
from memtx.memory.xl import Hidden, TransformerXL
from memtx.nn.attention import Origin
from memtx.nn.linear import Linear, dense
from memtx.nn.reads import OWN
from memtx.ops.rows import take


@pytree
class Compressed(Hidden):
    """Hidden states, and the compressed older ones, newest last. () if the config has no compressed states."""

    compressed_BSD: Array | tuple = ()
    loss_B: Array | tuple = ()  # only within a call


class Compressive(TransformerXL):
    """Transformer-XL with compressed older states, at the residual site: x_BTD -> x_BTD."""

    kind = "ring of hidden states, ring of compressed ones"

    @dataclasses.dataclass(frozen=True)
    class Config(TransformerXL.Config):
        compressed: int = 128  # compressed states kept, or 0 for Transformer-XL
        rate: int = 4  # hidden states that become one
        compression: str = "conv"  # conv | mean | max | most_used

        def __post_init__(self):
            super().__post_init__()
            check_known(self.compression, ("conv", "mean", "max", "most_used"), "compression")
            if self.compressed < 0 or self.rate < 1:
                raise UserError("compressed must be at least 0 and rate at least 1")
            if self.segment % self.rate:
                raise UserError(f"rate={self.rate} does not divide segment={self.segment}")
            if self.memory % self.segment:
                raise UserError(f"segment={self.segment} does not divide memory={self.memory}")

    config: Config
    tiny = (Config(segment=4, memory=4, compressed=3, rate=2),)

    def __init__(self, config: Config, dims: Dims, key: Array):
        own, conv = jax.random.split(key)
        super().__init__(config, dims, own)
        if config.compressed and config.compression == "conv":
            self.conv = Linear(conv, config.rate * dims.width, dims.width, shard="in")

    def init_state(self, batch_size: int) -> Compressed:
        hidden, c = super().init_state(batch_size), self.config
        compressed = jnp.zeros((batch_size, c.compressed, self.dims.width)) if c.compressed else ()
        return Compressed(hidden.memory_BMD, hidden.current_BCD, hidden.offset_B, hidden.segments_B, compressed)

    def __call__(self, x_BTD, state: Compressed, seg: Segment, *, key: Array | None = None):
        if not (self.config.compressed and wants("loss")):
            return super().__call__(x_BTD, state, seg, key=key)
        state = dataclasses.replace(state, loss_B=jnp.zeros(x_BTD.shape[0]))
        y_BTD, state = super().__call__(x_BTD, state, seg, key=key)
        emit("loss/compression", jnp.asarray(state.loss_B).mean())
        return y_BTD, dataclasses.replace(state, loss_B=())

    def remembered(self, state: Compressed) -> tuple[Array, Array]:
        """Return all hidden states, compressed ones first, [B, S + M, D], and which were written, [B, S + M]."""
        memory_BMD, valid_BM = super().remembered(state)
        if isinstance(state.compressed_BSD, tuple):
            return memory_BMD, valid_BM
        c = self.config
        pushed_out_B = jnp.maximum(state.segments_B * c.segment - c.memory, 0)
        valid_BS = jnp.arange(c.compressed) >= c.compressed - pushed_out_B[:, None] // c.rate
        return jnp.concatenate([state.compressed_BSD, memory_BMD], 1), jnp.concatenate([valid_BS, valid_BM], 1)

    def origin(self, slots: int) -> Origin | None:
        """Return the tokens of the keys: `rate` tokens of a compressed state, or with most_used those of its segment."""
        c = self.config
        spans = c.segment if c.compression == "most_used" else c.rate
        per_span = c.segment // c.rate if c.compression == "most_used" else 1
        ago_S = 1 + np.arange(c.compressed)[::-1] // per_span
        first_S = np.concatenate([c.compressed - spans * ago_S, np.arange(c.compressed, slots)])
        return Origin(OWN, first_S[None], np.where(np.arange(slots) < c.compressed, spans, 1))

    def finish(self, state: Compressed) -> Compressed:
        """Return the state after a segment, with the states that leave the memory compressed."""
        new = super().finish(state)
        if isinstance(state.compressed_BSD, tuple):
            return new
        h_BCD = lax.stop_gradient(state.current_BCD).astype(jnp.float32)
        old_BCD = lax.stop_gradient(state.memory_BMD[:, : self.config.segment])
        squeezed_BUD = self.compress(old_BCD, h_BCD)
        loss_B = state.loss_B
        if not isinstance(loss_B, tuple):
            error_BCE = self.content(h_BCD, old_BCD)[0] - self.content(h_BCD, squeezed_BUD)[0]
            full_B = state.segments_B * self.config.segment >= self.config.memory
            loss_B = loss_B + jnp.where(full_B, (error_BCE**2).mean((1, 2)), 0.0)
        joined = jnp.concatenate([state.compressed_BSD, lax.stop_gradient(squeezed_BUD)], 1)
        return dataclasses.replace(new, compressed_BSD=joined[:, squeezed_BUD.shape[1] :], loss_B=loss_B)

    def compress(self, old_BCD: Array, h_BCD: Array) -> Array:
        """Return f_c(old), [B, C, D] -> [B, C / c, D]. h_BCD is the segment that pushes `old` out."""
        batch, size, width = old_BCD.shape
        c = self.config
        groups = old_BCD.reshape(batch, size // c.rate, c.rate, width)
        if c.compression == "conv":
            return self.conv(groups.reshape(batch, size // c.rate, -1))
        if c.compression == "mean":
            return groups.mean(2)
        if c.compression == "max":
            return groups.max(2)
        usage_BC = self.content(h_BCD, old_BCD)[1].mean((1, 2))
        most_BU = jnp.argsort(-usage_BC, -1)[:, : size // c.rate]
        return take(old_BCD, jnp.sort(most_BU, -1))

    def content(self, h_BCD: Array, entries_BSD: Array) -> tuple[Array, Array]:
        """Attend from h to entries by content alone. Returns values [B, C, N H] and weights [B, N, C, S].

        Wq, Wk and Wv are constants here.
        """

        def heads(a: Array, linear: Linear) -> Array:
            return dense(a, lax.stop_gradient(linear.w[...])).reshape(*a.shape[:2], self.dims.num_heads, self.dims.head_dim)

        q_BCNH, k_BSNH, v_BSNH = heads(h_BCD, self.q), heads(entries_BSD, self.k), heads(entries_BSD, self.v)
        score_BNCS = jnp.einsum("BCNH,BSNH->BNCS", q_BCNH, k_BSNH) * self.dims.head_dim**-0.5
        weight_BNCS = jax.nn.softmax(score_BNCS, -1)
        return jnp.einsum("BNCS,BSNH->BCNH", weight_BNCS, v_BSNH).reshape(*h_BCD.shape[:2], -1), weight_BNCS
