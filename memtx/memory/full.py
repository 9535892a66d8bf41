"""Full attention: a cache of every key and value of the document, up to a fixed capacity.

    y_t = softmax(q_t k_j / sqrt(H)) v_j   over all j <= t

Beyond its capacity it drops the oldest entries, and is then a window of `capacity` tokens. Entries are written in place at
id mod capacity, so a step of decoding writes one entry. A train step in which every row starts a document skips the empty
cache.

Source: Vaswani et al. 2017 (arXiv 1706.03762).
B stream, T time, M memory slots, K kv heads, H head dim.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from memtx.core import Dims, Memory, Segment, pytree
from memtx.errors import positive
from memtx.memory.inspect import Inspectable
from memtx.nn.attention import KeySet, attend
from memtx.ops.rows import put


@pytree
class Cache(Inspectable):
    """M entries. The token with id n is entry n mod M."""

    k_BMKH: Array
    v_BMKH: Array
    position_BM: Array
    count_B: Array  # tokens ever written

    @property
    def valid_BM(self) -> Array:
        """The mask of the entries that were written."""
        return jnp.arange(self.k_BMKH.shape[1]) < self.count_B[:, None]

    @property
    def stored(self) -> tuple[Array, Array]:
        """Return the keys and `valid_BM` (see `Inspectable`)."""
        return self.k_BMKH, self.valid_BM


class Full(Memory):
    """Attention to every token of the document, at the attention site."""

    site = "attention"
    kind = "ring of keys and values"

    @dataclasses.dataclass(frozen=True)
    class Config:
        capacity: int = 2048  # tokens that a query sees, itself included

        def __post_init__(self):
            positive(self, "capacity")

    tiny = (Config(capacity=7),)
    context = "capacity"
    divides_time = True

    @classmethod
    def within(cls, config: Config, room: int) -> Config:
        return dataclasses.replace(config, capacity=min(config.capacity, room))

    def __init__(self, config: Config, dims: Dims, key: Array):
        self.config, self.dims = config, dims

    def init_state(self, batch_size: int) -> Cache:
        size = self.config.capacity
        shape = (batch_size, size, self.dims.num_kv_heads, self.dims.head_dim)
        return Cache(
            jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((batch_size, size), jnp.int32), jnp.zeros(batch_size, jnp.int32)
        )

    def __call__(self, x, state: Cache, seg: Segment, *, key: Array | None = None):
        q, k, v = x
        size = self.config.capacity
        past = KeySet(
            *(state.k_BMKH, state.v_BMKH, state.position_BM, state.valid_BM),
            window=size,
            often_empty=True,
            oldest_B=state.count_B % size,
        )
        if k is None:
            return attend(q, [past], seg, self.dims), state
        y = attend(q, [past, KeySet.call(k, v, seg, window=size)], seg, self.dims)
        rank = jnp.arange(k.shape[1])
        kept = seg.mask_BT & (rank >= seg.length_B[:, None] - size)  # not tokens that this call overwrites
        slot = jnp.where(kept, (state.count_B[:, None] + rank) % size, size)
        return y, Cache(
            put(state.k_BMKH, slot, k),
            put(state.v_BMKH, slot, v),
            put(state.position_BM, slot, seg.position_BT),
            state.count_B + seg.length_B,
        )
