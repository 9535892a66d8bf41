"""C4 and C5: rows do not influence each other, and an empty memory contributes nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.contract.case import BATCH, at, rows_differ


def test_c4_rows_are_isolated(case):
    x, state, start = case.x(1, 7), case.warm(), [7, 4, 6, 5]
    moved = jax.tree.map(lambda a: a.at[2].add(1.0), x)
    before, after = (case.call(a, state, at(start, 7)) for a in (x, moved))
    only_third = [False, False, True, False]  # the third is the control
    np.testing.assert_array_equal(rows_differ(before[0], after[0]), only_third)
    np.testing.assert_array_equal(rows_differ(before[1], after[1], case.axes), np.array(only_third) & case.keeps_x)


def test_c4_a_reset_row_is_a_fresh_row_and_others_stay(case):
    if not case.remembers:
        pytest.skip("a table has no state to reset")
    x, state, start = case.x(1, 7), case.warm(), np.array([7, 4, 6, 5])
    row = np.arange(BATCH) == 1
    start_reset = np.where(row, 0, start)
    fresh = case.call(x, case.init_state(), at(0, 7))
    kept = case.call(x, state, at(start, 7))
    wiped = case.call(x, state, at(start_reset, 7, reset_B=row))
    np.testing.assert_array_equal(rows_differ(wiped[0], kept[0]), row)  # row 1 is the control
    for _ in range(2):  # the call of the reset, and the one after it
        for part, axes in ((0, 0), (1, case.axes)):
            assert not rows_differ(wiped[part], kept[part], axes)[~row].any()
            assert not rows_differ(wiped[part], fresh[part], axes)[row].any()
        fresh = case.call(x, fresh[1], at(7, 7))
        kept = case.call(x, kept[1], at(start + 7, 7))
        wiped = case.call(x, wiped[1], at(start_reset + 7, 7))


def test_c5_an_empty_memory_reads_nothing(case):
    """Junk in empty entries changes no bit."""
    if not case.cls.entries:
        pytest.skip("its state has no entries that could be empty; C1 checks its first value")
    if not case.remembers:
        pytest.skip("a table is never empty")

    def litter(state):
        return jax.tree.map(lambda a: a + 1e3 if jnp.issubdtype(a.dtype, jnp.floating) else a, state)

    x, empty, used = case.x(1, 7), case.init_state(), case.warm()
    y, littered = (case.call(x, s, at(0, 7))[0] for s in (empty, litter(empty)))
    assert not rows_differ(y, littered).any()
    y, littered = (case.call(x, s, at([7, 4, 6, 5], 7))[0] for s in (used, litter(used)))
    assert rows_differ(y, littered).all()  # control: junk in valid entries is read


def test_c5_rows_without_a_token_stay_as_they_are(case):
    x = case.x(1, 7)
    for state in (case.init_state(), case.warm()):
        y, after = case.call(x, state, at([7, 4, 6, 5], 7, [0, 7, 0, 2]))
        assert np.isfinite(np.asarray(y)).all()
        np.testing.assert_array_equal(rows_differ(after, state, case.axes), np.array([0, 1, 0, 1], bool) & case.keeps_x)
