"""Transformer-XL: attention over the hidden states of the previous segment, projected anew, at relative positions.

    h~ = [SG(memory) ; h]                                   memory: the last M hidden states before this segment
    q = h Wq ;  k = h~ Wk ;  v = h~ Wv
    A_ij = ((q_i + u) . k_j + (q_i + w) . (Wr R_{i-j})) / sqrt(H)           R_p = [sin(p f), cos(p f)], f_m = 10000^(-2m/D)
    y = softmax(A) v Wo ;  memory <- SG(last M of [memory ; h]) at the end of each segment

What is differentiable: everything inside a segment of `segment` tokens. The gradient stops at the mechanism's own boundary,
not at the caller's, so results do not depend on how text is cut into calls. Hidden states are cached, not keys: cached keys
would give Wk and Wv other gradients and go stale when weights change. They are cached as x comes, after the norm of the block.

Deviations: u and w belong to each layer (the paper's code can share them); the state is cleared at the start of a document
(the paper's streams run on); blocks are pre-norm, and the norm's scale gets no gradient through the memory (the authors' code
norms the memory again); `position="rope"` replaces the relative terms by rotary positions.

Source: Dai et al. 2019 (arXiv 1901.02860).
B stream, T time, K blocks, Q slots in a block, M memory slots, C segment, S = M + C, N heads, H head dim, D model.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from memtx.core import Dims, Memory, Segment, State, pytree, scan, segment, where_rows
from memtx.errors import UserError, positive
from memtx.nn.attention import MASKED, KeySet, attend, sums, tile_shape
from memtx.nn.linear import Linear, normal
from memtx.ops.grid import Grid, skip_if_empty
from memtx.ops.rows import put


@pytree
class Hidden:
    """Hidden states: those of finished segments (newest last), and those of the segment that is under way."""

    memory_BMD: Array
    current_BCD: Array
    offset_B: Array  # tokens in the segment under way
    segments_B: Array  # finished segments


class TransformerXL(Memory):
    """Residual site: x_BTD -> x_BTD."""

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
        q, kv, r, out, u, w = jax.random.split(key, 6)
        self.config = config
        self.dims = dataclasses.replace(dims, num_kv_heads=dims.num_heads, position="rope")
        inner = dims.num_heads * dims.head_dim
        self.q, self.kv = Linear(q, dims.width, inner), Linear(kv, dims.width, 2 * inner)
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
        if x_BTD.shape[1] % self.config.segment:
            return self.any_cut(x_BTD, state, seg)
        # Training at T = segment meets whole segments only. The other branch is recomputed in its backward pass: one that is
        # not taken would fill its residuals with zeros.
        whole = (state.offset_B == 0).all() & seg.mask_BT.all()
        return lax.cond(whole, self.whole_segments, jax.checkpoint(self.any_cut), x_BTD, state, seg)

    def whole_segments(self, x_BTD, state: Hidden, seg: Segment):
        """What `any_cut` gives when every row begins a segment, is full and ends one: places are static."""
        ys = []
        for x_BCD in jnp.split(x_BTD, x_BTD.shape[1] // self.config.segment, 1):
            ys.append(self.read(x_BCD, self.remembered(state), x_BCD, 0))
            state = self.finish(state, x_BCD)
        return jnp.concatenate(ys, 1), state

    def any_cut(self, x_BTD, state: Hidden, seg: Segment):
        grid = Grid(seg.mask_BT, state.offset_B, self.config.segment)

        def work(state: Hidden, block):
            x_BQD, valid_BQ, slot_BQ, complete_B = block
            size = self.config.segment
            current = put(state.current_BCD, jnp.where(valid_BQ, slot_BQ, size), x_BQD)
            y_BQD = self.read(x_BQD, self.remembered(state), current, slot_BQ[:, 0])
            going = dataclasses.replace(state, current_BCD=current)
            rows = jax.tree.map(lambda _: 0, going)
            finish = lambda going: where_rows(complete_B, self.finish(going, current), going, rows)  # noqa: E731
            return lax.cond(complete_B.any(), finish, lambda going: going, going), y_BQD

        blocks = (grid.pack(x_BTD), grid.valid_KBQ, grid.slot_KBQ, grid.complete_KB)
        state, y_KBQD = scan(lambda s, block: skip_if_empty(block[1], work, s, block), state, blocks)
        return grid.unpack(y_KBQD), dataclasses.replace(state, offset_B=grid.offset_B)

    def remembered(self, state) -> tuple[Array, Array]:
        """What segments before this one left, oldest first, and which of it was ever written: [B, M, D], [B, M]."""
        size = self.config.memory
        return state.memory_BMD, jnp.arange(size) >= size - state.segments_B[:, None] * self.config.segment

    def finish(self, state, current_BCD: Array):
        """The state after a segment: the newest M hidden states, without gradient."""
        joined = jnp.concatenate([state.memory_BMD, current_BCD.astype(state.memory_BMD.dtype)], 1)
        return dataclasses.replace(
            state,
            memory_BMD=lax.stop_gradient(joined[:, self.config.segment :]),
            current_BCD=jnp.zeros_like(state.current_BCD),
            segments_B=state.segments_B + 1,
        )

    def read(self, x_BQD, remembered: tuple[Array, Array], current_BCD, slot: Array | int) -> Array:
        """Queries at slots slot + 0..Q-1 of the segment attend to what is remembered and to the segment up to themselves.

        slot: of each row, or 0 for all.
        """
        memory_BMD, valid_BM = remembered
        batch, queries, _ = x_BQD.shape
        size, slots = memory_BMD.shape[1], memory_BMD.shape[1] + current_BCD.shape[1]
        heads = (self.dims.num_heads, self.dims.head_dim)
        q = self.q(x_BQD).reshape(batch, queries, *heads)
        old, new = lax.stop_gradient(memory_BMD).astype(x_BQD.dtype), current_BCD.astype(x_BQD.dtype)
        parts = zip(self.kv.halves(old), self.kv.halves(new), strict=True)  # apart: the memory gets no gradient
        k, v = (jnp.concatenate(part, 1).reshape(batch, slots, *heads) for part in parts)
        place_BQ = size + jnp.broadcast_to(slot, batch)[:, None] + jnp.arange(queries)
        written_BS = jnp.pad(valid_BM, ((0, 0), (0, slots - size)), constant_values=True)
        aligned = isinstance(slot, int)
        if self.config.position == "rope":
            index_BS = jnp.broadcast_to(jnp.arange(slots), (batch, slots))
            source = KeySet(k, v, index_BS, written_BS, lead=size if aligned else None)
            y = attend(q, [source], segment(place_BQ), self.dims)
        else:
            y = self.relative(q, k, v, place_BQ, written_BS, aligned)
        return self.out(y.reshape(batch, queries, -1))

    def relative(self, q_BQNH, k_BSNH, v_BSNH, place_BQ, written_BS, aligned: bool) -> Array:
        """The paper's attention; the query in row b at place p sees key j <= p at distance p - j.

        aligned: the last queries stand at the last keys in every row, so that what can be seen is static.
        """
        batch, queries, heads, head_dim = q_BQNH.shape
        slots, dtype = k_BSNH.shape[1], q_BQNH.dtype
        rows, columns = tile_shape(queries, slots)
        farthest = slots - 1 if aligned else slots - 1 + queries  # an unfilled block reaches past the segment
        distance = np.arange(farthest, -rows - 1 if aligned else -slots, -1)
        frequency = 10_000.0 ** (-np.arange(0, self.dims.width, 2) / self.dims.width)
        angle = distance[:, None] * frequency
        table = jnp.asarray(np.concatenate([np.sin(angle), np.cos(angle)], -1), dtype)
        r_LNH = self.r(table).reshape(-1, heads, head_dim)
        r_BNLH = jnp.broadcast_to(r_LNH.swapaxes(0, 1), (batch, heads, len(distance), head_dim))
        content, location = (((q_BQNH + bias[...].astype(dtype)) * head_dim**-0.5).swapaxes(1, 2) for bias in (self.u, self.w))
        cuts = list(range(columns, slots, columns))
        ks, vs = (jnp.split(a.swapaxes(1, 2), cuts, 2) for a in (k_BSNH, v_BSNH))
        outs = []
        for start in range(0, queries, rows):
            stop = min(start + rows, queries)
            seen = slots - queries + stop if aligned else slots
            # r_window[m] is the code of distance place_of_last_query - m, so e[i, j] = E[i, rows-1-i+j]: a static shear.
            length = seen + stop - start
            if aligned:
                first = farthest - (slots - queries + stop - 1)
                r_window = r_BNLH[:, :, first : first + length]
            else:
                r_window = jax.vmap(lambda r, i, n=length: lax.dynamic_slice_in_dim(r, i, n, 1))(
                    r_BNLH, farthest - place_BQ[:, stop - 1]
                )
            e_BNQL = jnp.einsum("BNQH,BNLH->BNQL", location[:, :, start:stop], r_window, preferred_element_type=jnp.float32)
            es = shear(e_BNQL, columns)
            q = content[:, :, start:stop]
            scores, tiles = [], range(-(-seen // columns))
            for i in tiles:
                keys = slice(i * columns, min((i + 1) * columns, seen))
                k = ks[i][:, :, : keys.stop - keys.start]
                score = jnp.einsum("BNQH,BNSH->BNQS", q, k, preferred_element_type=jnp.float32)
                visible_BQS = (jnp.arange(keys.start, keys.stop) <= place_BQ[:, start:stop, None]) & written_BS[:, None, keys]
                scores.append(score + es[i] + jnp.where(visible_BQS, 0.0, MASKED)[:, None])
            values = [vs[i][:, :, : score.shape[-1]] for i, score in zip(tiles, scores, strict=True)]
            y, total, _ = sums([score[:, :, None] for score in scores], values, q[:, :, None])
            outs.append((y / total)[:, :, 0].astype(dtype))
        return jnp.concatenate(outs, 2).swapaxes(1, 2)


def shear(e_BNQL: Array, columns: int) -> list[Array]:
    """out[i, j] = e[i, Q-1-i+j] for j < S, L = S + Q, in tiles of keys: a reshape whose rows are one shorter, cut by `split`,
    so that the gradient is two copies."""
    *lead, rows, length = e_BNQL.shape
    flat = e_BNQL.reshape(*lead, rows * length)[..., : rows * (length - 1)]
    return jnp.split(flat.reshape(*lead, rows, length - 1), list(range(rows - 1, length - 1, columns)), -1)[1:]
