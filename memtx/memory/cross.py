"""Cross-attention: a memory that is written once from an encoder's output, and that every later token reads.

    K, V <- E Wk, E Wv              in a call with an encoder's output E of S tokens. They replace earlier keys
    y_t = Wo softmax(q_t k_j / sqrt(H)) v_j   over all of K, V;     q_t = x_t Wq

E is `seg.shared["encoded/h"]` [B, S, D]. `seg.shared["encoded/length"]` [B] is the number of real tokens in each row. A row
without real tokens keeps its keys. Calls without E only read. The output of a row that was never written is exactly zero.

Everything is differentiable, including E. There are no positions.

Source: Vaswani et al. 2017 (arXiv 1706.03762), the decoder; Raffel et al. 2019 (1910.10683).
B stream, T time, S source time, K kv heads, H head dim, D model.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from memtx.core import Dims, Memory, Segment, pytree, where_rows
from memtx.errors import UserError, positive
from memtx.memory.inspect import Inspectable
from memtx.nn.attention import KeySet, Origin, Projections, attend
from memtx.nn.reads import SOURCE


@pytree
class Encoded(Inspectable):
    """The keys and values of an encoder's output."""

    k_BSKH: Array
    v_BSKH: Array
    count_B: Array  # how many of the S are real

    @property
    def stored(self) -> tuple[Array, Array]:
        """Return the keys and a mask of the real ones (see `Inspectable`)."""
        return self.k_BSKH, jnp.arange(self.k_BSKH.shape[1]) < self.count_B[:, None]


class Cross(Memory):
    """Attention to an encoder's output, at the residual site: x_BTD -> x_BTD."""

    site = "residual"
    kind = "bank of keys and values of an encoder"
    encoded = True

    @dataclasses.dataclass(frozen=True)
    class Config:
        capacity: int = 512  # S, tokens of the source

        def __post_init__(self):
            positive(self, "capacity")

    tiny = (Config(capacity=4),)

    def __init__(self, config: Config, dims: Dims, key: Array):
        self.config, self.dims = config, dataclasses.replace(dims, position="none")
        self.attention = Projections(key, self.dims)

    def init_state(self, batch_size: int) -> Encoded:
        shape = (batch_size, self.config.capacity, self.dims.num_kv_heads, self.dims.head_dim)
        return Encoded(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(batch_size, jnp.int32))

    def __call__(self, x_BTD: Array, state: Encoded, seg: Segment, *, key: Array | None = None):
        if "encoded/h" in seg.shared:
            state = self.write(state, seg.shared["encoded/h"], seg.shared["encoded/length"])
        keys_BSKH, valid_BS = state.stored
        nowhere = jnp.zeros_like(valid_BS, jnp.int32)
        source = KeySet(keys_BSKH, state.v_BSKH, nowhere, valid_BS, future=True, origin=Origin(SOURCE))
        q_BTNH = self.attention.queries(x_BTD)
        y_BTD = self.attention.merge(attend(q_BTNH, [source], seg, self.dims))
        return jnp.where((state.count_B > 0)[:, None, None], y_BTD, 0), state

    def write(self, state: Encoded, h_BSD: Array, length_B: Array) -> Encoded:
        """Return the state with the keys and values of h, in rows with real tokens. Raises UserError if S is too large."""
        room = self.config.capacity - h_BSD.shape[1]
        if room < 0:
            raise UserError(
                f"memory.cross.capacity={self.config.capacity} is too small: the source has {h_BSD.shape[1]} tokens"
            )
        k, v = (jnp.pad(a.astype(jnp.float32), ((0, 0), (0, room), (0, 0), (0, 0))) for a in self.attention.keys_values(h_BSD))
        return where_rows(length_B > 0, Encoded(k, v, length_B), state)
