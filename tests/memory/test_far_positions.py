"""Attention over cached keys is as exact at position ten million as at the start: only distances count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.contract.case import at, cases, distance

FAR = 10_000_000


@pytest.mark.parametrize("name", ["full", "window", "sink"])
def test_ten_million_tokens_on_nothing_has_changed(name):
    case = next(case for case in cases() if case.name == name)
    _, state = case.run(case.x(0), [16])
    # 10,000,000 is a multiple of no ring here; a ring written at id mod 7 must meet the same slot: shift by a multiple of 7.
    shift = FAR - FAR % 7
    far = jax.tree.map(lambda a: a + shift if jnp.issubdtype(a.dtype, jnp.integer) else a, state)
    x = case.x(1, 7)
    near_y, far_y = case.call(x, state, at(16, 7))[0], case.call(x, far, at(16 + shift, 7))[0]
    assert distance(far_y, near_y) <= 1e-5
    wrong = case.call(x, far, at(np.array([16, 17, 18, 19]) + shift, 7))[0]  # control: distances do count
    told = distance(wrong[1:], near_y[1:])  # by `full`; the others count themselves, one place for each token that they hold
    assert told > 1e-3 if name == "full" else told <= 1e-5
