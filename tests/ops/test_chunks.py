"""Steps on chunks: results and emitted values do not depend on whether all rows have whole chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.core import collect, emit, segment
from memtx.ops.chunks import in_chunks

SIZE, BATCH, TIME = 4, 2, 8


def running(emits: bool = False):
    """A step whose state is the sum of the chunks before; y adds it to each token. It counts on being told where chunks end."""

    def step(state, x_BQ, place):
        whole, going = state
        valid_BQ = jnp.ones(x_BQ.shape, bool) if place is None else place.valid_BQ
        complete_B = jnp.ones(len(x_BQ), bool) if place is None else place.complete_B
        going = going + jnp.where(valid_BQ, x_BQ, 0).sum(1)
        if emits:
            emit("loss/size", (jnp.where(valid_BQ, x_BQ, 0) ** 2).sum(1))
        y_BQ = x_BQ + whole[:, None]
        return (jnp.where(complete_B, whole + going, whole), jnp.where(complete_B, 0, going)), y_BQ

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
    y_BT, after = in_chunks(SIZE, running(), x_BT, state, jnp.zeros(BATCH, jnp.int32), seg)
    expected, expected_after = by_parts(running(), x_BT, state, (3, 5))
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
