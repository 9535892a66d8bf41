"""Transformer-XL: attention over the hidden states of the previous segment, projected again, at relative positions.

    h~ = [SG(memory) ; h]                                   memory: the last M hidden states before this segment
    q = h Wq ;  k = h~ Wk ;  v = h~ Wv
    A_ij = ((q_i + u) . k_j + (q_i + w) . (Wr R_{i-j})) / sqrt(H)           R_p = [sin(p f), cos(p f)], f_m = 10000^(-2m/D)
    y = softmax(A) v Wo ;  memory <- SG(last M of [memory ; h]) at the end of each segment

Gradient: everything inside a segment of `segment` tokens is differentiable. The gradient stops at the boundaries of segments
and not at those of calls, so results do not depend on how a text is cut into calls. The state has hidden states and not keys,
because stored keys would give Wk and Wv other gradients and become stale when weights change. Hidden states are stored after
the norm of the block.

Deviations: Each layer has its u and w (the paper's code can share them). The state is cleared at the start of a document, while
the paper's streams continue. Blocks are pre-norm, and the norm's scale gets no gradient through the memory (the authors' code
norms the memory again). `position="rope"` replaces the relative terms by rotary positions.

Source: Dai et al. 2019 (arXiv 1901.02860).
B stream, T time, Q slots in a part of a segment, M memory slots, C segment, S = M + C, N heads, H head dim, D model,
L distances.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from memtx.core import Dims, Memory, Segment, State, pytree, segment
from memtx.errors import UserError, positive
from memtx.memory.inspect import Inspectable
from memtx.nn.attention import KeySet, Origin, attend
from memtx.nn.linear import Linear, normal
from memtx.ops import dot
from memtx.ops.attention import Bias, shear
from memtx.ops.chunks import ChunkPart, change_rows, in_chunks
from memtx.ops.rows import put, slice_rows


@pytree
class Hidden(Inspectable):
    """The hidden states of finished segments, newest last, and those of the unfinished segment."""

    memory_BMD: Array
    current_BCD: Array
    offset_B: Array  # tokens in the unfinished segment
    segments_B: Array  # finished segments

    @property
    def stored(self) -> tuple[Array, Array]:
        """Return the hidden states of finished segments and a mask of the written ones (see `Inspectable`)."""
        size, segment = self.memory_BMD.shape[1], self.current_BCD.shape[1]
        return self.memory_BMD, jnp.arange(size) >= size - self.segments_B[:, None] * segment


class TransformerXL(Memory):
    """Transformer-XL's attention, at the residual site: x_BTD -> x_BTD."""

    site = "residual"
    positions = ("rope", "alibi", "learned", "none")  # T5's bias is not added to its scores
    kind = "ring of hidden states"

    @dataclasses.dataclass(frozen=True)
    class Config:
        segment: int = 128  # tokens between two writes
        memory: int = 128  # hidden states kept
        position: str = "relative"  # relative (the paper's) | rope

        def __post_init__(self):
            positive(self, "segment", "memory")
            if self.position not in ("relative", "rope"):
                raise UserError(f"position must be relative or rope, not {self.position!r}")

    tiny = (Config(segment=4, memory=6), Config(segment=4, memory=6, position="rope"))

    def __init__(self, config: Config, dims: Dims, key: Array):
        q, k, v, r, out, u, w = jax.random.split(key, 7)
        self.config = config
        position = "none" if config.position == "relative" else config.position  # `by_distance` is its own
        self.dims = dataclasses.replace(dims, num_kv_heads=dims.num_heads, position=position)
        inner = dims.num_heads * dims.head_dim
        self.q, self.k, self.v = (Linear(each, dims.width, inner) for each in (q, k, v))
        self.out = Linear(out, inner, dims.width, shard="in")
        if config.position == "relative":
            self.r = Linear(r, dims.width, inner)
            self.u = normal(u, (dims.num_heads, dims.head_dim), 0.02, optim="no_decay")
            self.w = normal(w, (dims.num_heads, dims.head_dim), 0.02, optim="no_decay")

    def init_state(self, batch_size: int) -> Hidden:
        c, width = self.config, self.dims.width
        return Hidden(
            jnp.zeros((batch_size, c.memory, width)),
            jnp.zeros((batch_size, c.segment, width)),
            jnp.zeros(batch_size, jnp.int32),
            jnp.zeros(batch_size, jnp.int32),
        )

    def __call__(self, x_BTD, state: Hidden, seg: Segment, *, key: Array | None = None) -> tuple[Array, State]:
        size = self.config.segment
        y_BTD, state = in_chunks(size, self.step, x_BTD, state, state.offset_B, seg)
        return y_BTD, dataclasses.replace(state, offset_B=(state.offset_B + seg.length_B) % size)

    def step(self, state: Hidden, x_BQD: Array, part: ChunkPart) -> tuple[Hidden, Array]:
        """Read and store a part of a segment. Returns the new state and y_BQD."""
        index_BQ = part.slot_BQ + self.config.segment * ~part.valid_BQ  # slots without a token are out of range: dropped
        state = dataclasses.replace(state, current_BCD=put(state.current_BCD, index_BQ, x_BQD))
        y_BQD = self.read(x_BQD, self.remembered(state), state.current_BCD, part.slot_BQ[:, 0])
        return change_rows(part.ends_B, self.finish, state), y_BQD

    def remembered(self, state: Hidden) -> tuple[Array, Array]:
        """Return the hidden states of earlier segments, oldest first, [B, M, D], and a mask of the written ones, [B, M]."""
        return state.stored

    def finish(self, state):
        """Return the state after a segment: the newest M hidden states, without gradient."""
        joined = jnp.concatenate([state.memory_BMD, state.current_BCD], 1)
        return dataclasses.replace(
            state,
            memory_BMD=lax.stop_gradient(joined[:, self.config.segment :]),
            current_BCD=jnp.zeros_like(state.current_BCD),
            segments_B=state.segments_B + 1,
        )

    def read(self, x_BQD: Array, remembered: tuple[Array, Array], current_BCD: Array, slot_B: Array) -> Array:
        """Return y of the queries at slots slot_B + 0..Q-1, which see the memory and the segment up to their slot."""
        memory_BMD, written_BM = remembered
        (batch, queries, _), size = x_BQD.shape, memory_BMD.shape[1]
        split = lambda a: a.reshape(*a.shape[:2], self.dims.num_heads, self.dims.head_dim)  # noqa: E731
        old, new = lax.stop_gradient(memory_BMD).astype(x_BQD.dtype), current_BCD.astype(x_BQD.dtype)
        both = lambda w: split(jnp.concatenate([w(old), w(new)], 1))  # noqa: E731  # apart: the memory gets no gradient
        k_BSNH, v_BSNH = both(self.k), both(self.v)
        slots = k_BSNH.shape[1]
        written_BS = jnp.pad(written_BM, ((0, 0), (0, slots - size)), constant_values=True)
        index_BS = np.broadcast_to(np.arange(slots), (batch, slots))
        index_BQ = size + slot_B[:, None] + np.arange(queries)
        q_BQNH, bias = split(self.q(x_BQD)), None
        if self.config.position == "relative":  # A_ij = (q_i + u) . k_j + (q_i + w) . (Wr R_{i-j}), scaled
            bias = self.by_distance(q_BQNH + self.w[...].astype(x_BQD.dtype), index_BQ, slots)
            q_BQNH = q_BQNH + self.u[...].astype(x_BQD.dtype)
        keys = KeySet(k_BSNH, v_BSNH, index_BS, written_BS, query_position_BT=index_BQ, bias=bias, origin=self.origin(slots))
        y_BQNH = attend(q_BQNH, [keys], segment(index_BQ), self.dims)
        return self.out(y_BQNH.reshape(batch, queries, -1))

    def origin(self, slots: int) -> Origin | None:
        """Return the tokens of the keys that `read` sees, for attribution. None: key j is the token at index j."""
        return None

    def by_distance(self, q_BQNH: Array, index_BQ: Array, slots: int) -> Bias:
        """Return the term q_i . (Wr R_{i-j}) / sqrt(H) of the scores. The query at index i sees key j at distance i - j."""
        farthest = slots - 1 + q_BQNH.shape[1]  # a part with empty slots reaches past the segment
        r_LNH = self.r(sinusoids(np.arange(farthest, -slots, -1), self.dims.width).astype(q_BQNH.dtype))
        r_LNH = r_LNH.reshape(-1, *q_BQNH.shape[2:])  # r_LNH[l] is of distance farthest - l
        q_BQNH = q_BQNH * self.dims.scale

        def bias(queries: slice, keys: slice) -> Array:
            q_BTNH, size = q_BQNH[:, queries], keys.stop - keys.start
            first_B = farthest - (index_BQ[:, queries][:, -1] - keys.start)  # from the last query to the first key
            near_BLNH = slice_rows(jnp.broadcast_to(r_LNH, (len(first_B), *r_LNH.shape)), first_B, q_BTNH.shape[1] + size)
            score_BNTL = dot.einsum("BTNH,BLNH->BNTL", q_BTNH, near_BLNH)
            return shear(score_BNTL, size)

        return bias


def sinusoids(distance_L: np.ndarray, width: int) -> Array:
    """Return R: [sin(p f), cos(p f)] for each distance p, [L, D]."""
    angle = distance_L[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
    return jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], -1))
