"""Sliding window: the keys and values of the last `window` tokens.

    y_t = softmax(q_t k_j / sqrt(H)) v_j   over j in (t - window, t]

The keys are in order of time with the newest last, so a group of queries reads one slice of them. Writing shifts them. Keys
are stored un-rotated and are rotated at their distance from the query when they are read. Gradients flow into the state until
the caller detaches it. Nothing beyond window * layers tokens can be recovered.

Source: Beltagy et al. 2020 (arXiv 2004.05150); Child et al. 2019 (1904.10509).
B stream, T time, M memory slots, K kv heads, H head dim.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from memtx.core import Dims, Memory, Segment, pytree
from memtx.errors import positive
from memtx.memory.inspect import Inspectable
from memtx.nn.attention import KeySet, attend
from memtx.ops.rows import shift


@pytree
class Recent(Inspectable):
    """The last M keys and values, newest last. The first M - count_B of them are empty."""

    k_BMKH: Array
    v_BMKH: Array
    count_B: Array  # tokens ever written

    @staticmethod
    def empty(batch: int, size: int, dims: Dims) -> "Recent":
        """Return the state of `batch` streams that have read nothing, with M = `size`."""
        shape = (batch, size, dims.num_kv_heads, dims.head_dim)
        zeros = jnp.zeros(shape)
        return Recent(zeros, jnp.zeros(shape), jnp.zeros(batch, jnp.int32))

    @property
    def valid_BM(self) -> Array:
        """The mask of the keys that were written."""
        size = self.k_BMKH.shape[1]
        return jnp.arange(size) >= size - self.count_B[:, None]

    @property
    def stored(self) -> tuple[Array, Array]:
        """Return the keys and `valid_BM` (see `Inspectable`)."""
        return self.k_BMKH, self.valid_BM

    def write(self, k_BTKH: Array, v_BTKH: Array, seg: Segment) -> "Recent":
        """Return the state with this call's real tokens."""
        return Recent(
            shift(self.k_BMKH, k_BTKH, seg.length_B),
            shift(self.v_BMKH, v_BTKH, seg.length_B),
            self.count_B + seg.length_B,
        )

    def keys(self, window: int) -> KeySet:
        """Return the keys of the tokens before the call."""
        return KeySet.recent(self.k_BMKH, self.v_BMKH, self.valid_BM, window=window)


class Window(Memory):
    """Sliding-window attention, at the attention site."""

    site = "attention"
    context = "window"
    divides_time = True
    kind = "ring of keys and values"

    @dataclasses.dataclass(frozen=True)
    class Config:
        window: int = 256  # tokens that a query sees, itself included

        def __post_init__(self):
            positive(self, "window")

    tiny = (Config(window=5),)

    def __init__(self, config: Config, dims: Dims, key: Array):
        self.config, self.dims = config, dims

    def init_state(self, batch_size: int) -> Recent:
        return Recent.empty(batch_size, self.config.window, self.dims)

    def __call__(self, x, state: Recent, seg: Segment, *, key: Array | None = None):
        q, k, v = x
        window = self.config.window
        if k is None:
            return attend(q, [state.keys(window)], seg, self.dims), state
        y = attend(q, [state.keys(window), KeySet.call(k, v, seg, window=window)], seg, self.dims)
        return y, state.write(k, v, seg)
