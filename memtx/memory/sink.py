"""StreamingLLM: the document's first `sinks` tokens and the last `window`, at positions counted inside the cache.

    cache_t = tokens 0..s-1 and (t-W, t]         a query has position min(t, s+W-1) in it
    distance to sink i   = min(t, s+W-1) - i     so it never exceeds the distances of training
    distance to others   = t - j

It does not remember tokens that leave the window. It is the baseline of constant size that every memory must beat. Keys are
stored un-rotated, since their positions in the cache change. Sinks are counted once, because the window skips them.

Source: Xiao et al. 2023 (arXiv 2309.17453).
B stream, T time, M memory slots, S sinks, K kv heads, H head dim.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from memtx.core import Dims, Memory, Segment, pytree
from memtx.errors import positive
from memtx.memory.window import Recent
from memtx.nn.attention import KeySet, Origin, attend
from memtx.nn.reads import OWN
from memtx.ops.rows import put


@pytree
class Sinks:
    """The window, and the keys and values of the first S tokens."""

    recent: Recent
    k_BSKH: Array
    v_BSKH: Array


class Sink(Memory):
    """Attention to sinks and a window, at the attention site. The positions must be rope, alibi or t5."""

    site = "attention"
    context = "window"
    kind = "ring of keys and values"

    @dataclasses.dataclass(frozen=True)
    class Config:
        window: int = 256  # tokens that a query sees, itself included
        sinks: int = 4  # first tokens of the document, which every query sees

        def __post_init__(self):
            positive(self, "window", "sinks")

    tiny = (Config(window=4, sinks=2),)

    def __init__(self, config: Config, dims: Dims, key: Array):
        self.config, self.dims = config, dims

    def init_state(self, batch_size: int) -> Sinks:
        shape = (batch_size, self.config.sinks, self.dims.num_kv_heads, self.dims.head_dim)
        return Sinks(Recent.empty(batch_size, self.config.window, self.dims), jnp.zeros(shape), jnp.zeros(shape))

    def __call__(self, x, state: Sinks, seg: Segment, *, key: Array | None = None):
        q, k, v = x
        sinks, window = self.config.sinks, self.config.window
        recent = state.recent
        seg = seg.replace(position_BT=recent.count_B[:, None] + jnp.arange(q.shape[1]))  # counted from the reset
        if k is not None:
            slot = jnp.where(seg.mask_BT, seg.position_BT, sinks)
            state = dataclasses.replace(state, k_BSKH=put(state.k_BSKH, slot, k), v_BSKH=put(state.v_BSKH, slot, v))
        written = recent.count_B + (0 if k is None else seg.length_B)
        index = jnp.broadcast_to(jnp.arange(sinks), (q.shape[0], sinks))
        first = KeySet(
            state.k_BSKH,
            state.v_BSKH,
            position_BS=index,
            valid_BS=index < written[:, None],
            query_position_BT=jnp.minimum(seg.position_BT, sinks + window - 1),
            origin=Origin(OWN, index),
        )
        before_BM = recent.count_B[:, None] - window + jnp.arange(window)  # positions of the recent keys
        sets = [first, recent.keys(window).without(before_BM < sinks)]
        if k is None:
            return attend(q, sets, seg, self.dims), state
        own = KeySet.call(k, v, seg, window=window).without(seg.position_BT < sinks)
        return attend(q, [*sets, own], seg, self.dims), dataclasses.replace(state, recent=recent.write(k, v, seg))
