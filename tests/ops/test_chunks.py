"""Steps on chunks: results and emitted values do not depend on whether all rows have whole chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.core import collect, emit, segment
from memtx.ops.chunks import ChunkPart, change_rows, in_chunks
from memtx.ops.grid import Grid

SIZE, BATCH, TIME = 4, 2, 8


def running(emits: bool = False):
    """Return a step whose state is two sums: of the chunks before, which y adds to each token, and of the current chunk."""

    def step(state, x_BQ, part):
        whole, going = state
        x_BQ = jnp.where(part.valid_BQ, x_BQ, 0)
        if emits:
            emit("loss/size", (x_BQ**2).sum(1))
        close = lambda state: (state[0] + state[1], jnp.zeros_like(state[1]))  # noqa: E731
        return change_rows(part.ends_B, close, (whole, going + x_BQ.sum(1))), x_BQ + whole[:, None]

    return step


def text(seed: int = 0):
    x_BT = jax.random.normal(jax.random.key(seed), (BATCH, TIME))
    return x_BT, (jnp.zeros(BATCH), jnp.zeros(BATCH)), segment(jnp.broadcast_to(jnp.arange(TIME), (BATCH, TIME)))


def by_parts(step, x_BT, state, cuts):
    """The same text in calls that end at the cuts: none of them meets whole chunks only."""
    ys, offset_B = [], jnp.zeros(BATCH, jnp.int32)
    for start, stop in zip((0, *cuts), (*cuts, TIME), strict=True):
        seg = segment(jnp.broadcast_to(jnp.arange(start, stop), (BATCH, stop - start)))
        y_BT, state = in_chunks(SIZE, step, x_BT[:, start:stop], state, offset_B, seg)
        ys.append(y_BT)
        offset_B = (offset_B + stop - start) % SIZE
    return jnp.concatenate(ys, 1), state


def test_whole_chunks_are_what_a_text_in_parts_gives():
    x_BT, state, seg = text()
    y_BT, after = jax.jit(lambda *args: in_chunks(SIZE, running(), *args))(x_BT, state, jnp.zeros(BATCH, jnp.int32), seg)
    expected, expected_after = jax.jit(lambda *args: by_parts(running(), *args, (3, 5)))(x_BT, state)
    np.testing.assert_allclose(y_BT, expected, rtol=1e-6)
    np.testing.assert_allclose(after, expected_after, rtol=1e-6, atol=1e-6)
    sums = x_BT.reshape(BATCH, -1, SIZE).sum(-1)
    np.testing.assert_allclose(after[0], sums.sum(1), rtol=1e-5)
    np.testing.assert_allclose(y_BT[:, SIZE:], x_BT[:, SIZE:] + sums[:, :1], rtol=1e-5)


@pytest.mark.parametrize("offset", [0, 3])
def test_losses_of_all_chunks_are_passed_on_from_either_branch(offset):
    x_BT, state, seg = text(1)

    def run(x_BT):
        return in_chunks(SIZE, running(emits=True), x_BT, state, jnp.full(BATCH, offset), seg)

    _, aux = jax.jit(lambda x: collect(run, "loss")(x))(x_BT)
    np.testing.assert_allclose(sum(value.sum() for value in aux["loss/size"]), (x_BT**2).sum(), rtol=1e-5)


def test_a_whole_chunk_is_the_part_that_a_grid_gives():
    grid = Grid(jnp.ones((BATCH, SIZE), bool), jnp.zeros(BATCH, jnp.int32), SIZE)
    part = ChunkPart.whole(BATCH, SIZE)
    for ours, theirs in (
        (part.valid_BQ, grid.valid_KBQ),
        (part.slot_BQ, grid.slot_KBQ),
        (part.starts_B, grid.start_KB),
        (part.ends_B, grid.complete_KB),
    ):
        np.testing.assert_array_equal(ours, theirs[0])
    np.testing.assert_array_equal(part.length_B, SIZE)
