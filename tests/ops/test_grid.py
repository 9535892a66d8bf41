"""Grid against plain Python: every row's tokens in that row's own chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.ops.grid import Grid, skip_if_empty


def chunks_of(length: int, offset: int, size: int) -> list[list[tuple[int, int]]]:
    """The row's (token, slot in its chunk), chunk by chunk; the first list goes on with the unfinished chunk."""
    chunks: list[list[tuple[int, int]]] = [[]]
    for token in range(length):
        place = offset + token
        if place // size >= len(chunks):
            chunks.append([])
        chunks[place // size].append((token, place % size))
    return chunks


@pytest.mark.parametrize(("time", "size"), [(1, 4), (3, 4), (4, 4), (9, 4), (5, 1), (7, 16)])
def test_grid_is_each_rows_own_chunks(time, size):
    rng = np.random.default_rng(time * size)
    length, offset = rng.integers(0, time + 1, 32), rng.integers(0, size, 32)
    mask = np.arange(time) < length[:, None]
    grid = Grid(jnp.asarray(mask), jnp.asarray(offset, jnp.int32), size)
    token_KBQ = np.asarray(grid.pack(jnp.broadcast_to(1 + jnp.arange(time), (32, time))))
    assert token_KBQ.shape[2] == min(time, size)
    for row in range(32):
        chunks = chunks_of(length[row], offset[row], size)
        chunks += [[]] * (len(token_KBQ) - len(chunks))
        assert len(chunks) == len(token_KBQ)  # enough blocks for every row
        for block, chunk in enumerate(chunks):
            n, slots = len(chunk), [slot for _, slot in chunk]
            assert list(token_KBQ[block, row]) == [1 + token for token, _ in chunk] + [0] * (min(time, size) - n)
            assert grid.valid_KBQ[block, row].tolist() == [True] * n + [False] * (min(time, size) - n)
            assert grid.slot_KBQ[block, row, :n].tolist() == slots
            assert bool(grid.start_KB[block, row]) == (slots[:1] == [0])
            assert bool(grid.complete_KB[block, row]) == (slots[-1:] == [size - 1])
        assert grid.offset_B[row] == (offset[row] + length[row]) % size


def test_unpack_undoes_pack_and_clears_padding():
    mask = np.arange(7) < np.array([7, 3, 0])[:, None]
    grid = Grid(jnp.asarray(mask), jnp.array([2, 3, 1]), 4)
    x = np.random.default_rng(0).normal(size=(3, 7, 2)).astype(np.float32)
    np.testing.assert_array_equal(grid.unpack(grid.pack(x)), np.where(mask[..., None], x, 0))


def test_skip_if_empty_runs_the_work_only_where_a_token_is():
    def work(carry, x):
        return carry + 1, {"y": x * 2}

    run = jax.jit(lambda valid, carry, x: skip_if_empty(valid, work, carry, x))
    carry, out = run(jnp.array([[False, True]]), 5, jnp.ones(3))
    assert carry == 6
    np.testing.assert_array_equal(out["y"], 2)
    carry, out = run(jnp.zeros((1, 2), bool), 5, jnp.ones(3))
    assert carry == 5
    np.testing.assert_array_equal(out["y"], 0)
