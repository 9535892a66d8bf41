"""C2 and C3: the result depends neither on how a text is cut into calls nor on later tokens."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.contract.case import BATCH, EXACT, MOVED, at, cut, distance, rows_differ, shard

ODD = [1, 1, 4, 7, 1, 1, 1]  # calls cross the boundaries of chunks; other checks compile calls of these sizes too


@pytest.mark.parametrize("cuts", [[4] * 4, [1] * 16, ODD], ids=["segments", "tokens", "odd"])
def test_c2_cuts_do_not_matter(case, cuts):
    x = case.x(0)
    assert (distance(case.run(x, cuts), case.run(x, [16])) <= EXACT) == case.causal


def test_c2_control_every_part_of_the_state_is_carried(case):
    x, fresh = case.x(0), jax.tree.leaves(case.init_state())
    whole = case.run(x, ODD)

    def wipe(i, state):
        leaves, tree = jax.tree.flatten(state)
        return tree.unflatten([*leaves[:i], fresh[i], *leaves[i + 1 :]])

    for i in range(len(fresh)):
        assert distance(case.run(x, ODD, between=partial(wipe, i)), whole) > MOVED, f"leaf {i} carries nothing"


@pytest.mark.parametrize("time", [4, pytest.param(7, marks=pytest.mark.thorough)])
def test_c2_rows_out_of_step(case, time):
    """Ragged calls, padded with large junk values, give the same result. Each row starts a second document within a call."""
    if not case.causal:
        pytest.skip("not causal: its output depends on how the text is cut")
    x, second = case.x(0), np.array([5, 3, 9, 14])
    y_first = np.asarray(case.call(x, case.init_state(), at(0, 16, second))[0])
    shifted = jax.tree.map(lambda a: np.stack([np.roll(a[row], -n, 0) for row, n in enumerate(second)]), x)
    y_second, state = case.call(shifted, case.init_state(), at(0, 16, 16 - second))
    y_second = np.asarray(y_second)
    y, ragged = run_ragged(case, x, second, time)
    for row, n in enumerate(second):
        assert distance(y[row, :n], y_first[row, :n]) <= EXACT
        assert distance(y[row, n:], y_second[row, : 16 - n]) <= EXACT
    assert distance(ragged, state) <= EXACT
    if not case.remembers:
        return
    y, unreset = run_ragged(case, x, second, time, ignore=True)  # control
    assert all(distance(y[row, n:], y_second[row, : 16 - n]) > MOVED for row, n in enumerate(second))
    assert distance(unreset, state) > MOVED


def run_ragged(case, x, second, time: int, ignore: bool = False):
    """Feed each row a few tokens per call. With `ignore`, a call may cross the start of the second document."""
    state, taken_B, call = case.init_state(), np.zeros(BATCH, int), 0
    x = jax.tree.map(np.asarray, x)
    y_out = None
    while (taken_B < 16).any():
        want = np.roll([4, 2, 0, 3], call)
        end = np.where(taken_B < second, second, 16)
        length = np.minimum(want, end - taken_B)
        begins = (taken_B == second) & (length > 0)
        part = jax.tree.map(lambda a, at=taken_B, n=length: take_padded(a, at, n, time), x)
        position = taken_B - np.where((taken_B >= second) & (not ignore), second, 0)
        y, state = case.call(part, state, at(position, time, length, begins & (not ignore)))
        y = np.asarray(y)
        y_out = np.zeros((BATCH, 16, *y.shape[2:])) if y_out is None else y_out
        for row, n in enumerate(length):
            y_out[row, taken_B[row] : taken_B[row] + n] = y[row, :n]
        taken_B, call = taken_B + length, call + 1
    return y_out, state


def take_padded(a, start_B, length_B, time: int):
    """Take a different slice of each row, padded with 50."""
    out = np.full((BATCH, time, *a.shape[2:]), 50.0, a.dtype)
    for row, (start, n) in enumerate(zip(start_B, length_B, strict=True)):
        out[row, :n] = a[row, start : start + n]
    return out


def test_c2_padding_is_not_seen(case):
    x, state, length = case.x(1, 7), case.warm(), np.array([5, 7, 1, 3])
    seg = at([7, 4, 6, 5], 7, length)
    padding = np.arange(7) >= length[:, None]
    junk = jax.tree.map(lambda a: jnp.where(padding.reshape(BATCH, 7, *[1] * (a.ndim - 2)), 50.0, a), x)
    (y, after), (other, same) = case.call(x, state, seg), case.call(junk, state, seg)
    for row, n in enumerate(length):
        assert distance(other[row, :n], y[row, :n]) <= EXACT
    assert distance(same, after) <= EXACT
    other, _ = case.call(junk, state, at([7, 4, 6, 5], 7))  # control: the same junk as real tokens
    np.testing.assert_array_equal(rows_differ(y, other), length < 7)


def test_c2_another_layer_reads_the_same_memory_however_text_is_cut(case):
    """A reader (memtx/models/readers.py) has its own parameters and queries, and uses the writer's keys, values and state."""
    if case.cls.site != "attention":
        pytest.skip("only memories at the attention site have readers")
    x, q = case.x(0), case.x(5)[0]
    rng = np.random.default_rng(0)
    own = jax.tree.map(lambda a: shard(a + rng.normal(0, 0.5, a.shape).astype(a.dtype), -1), case.params)

    def read(cuts):
        state, outs, start = case.init_state(), [], 0
        for time in cuts:
            (mine, k, v), seg = cut((q, *x[1:]), start, time), at(start, time)
            outs.append(np.asarray(case.jitted(own, shard((mine, k, v)), state, shard(seg))[0]))
            _, state = case.call(cut(x, start, time), state, seg)
            start += time
        return np.concatenate(outs, 1)

    readable = case.cls.readable and case.causal
    assert (distance(read(ODD), read([16])) <= EXACT) == readable, "set readable = False if its writes depend on its parameters"


@pytest.mark.parametrize(("time", "t"), [(7, 3), (16, 9)])
def test_c3_the_past_does_not_see_the_future(case, time, t):
    x, state, start = case.x(1, time), case.warm(), [7, 4, 6, 5]
    moved = jax.tree.map(lambda a: a.at[:, t].add(1.0), x)
    y, other = (np.asarray(case.call(a, state, at(start, time))[0]) for a in (x, moved))
    assert not rows_differ(y[:, :t], other[:, :t]).any() if case.causal else rows_differ(y[:, :t], other[:, :t]).all()
    assert rows_differ(y[:, t:], other[:, t:]).all()  # control
