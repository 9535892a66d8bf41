"""Selection equals `lax.top_k`, places and ties included, however long the rows are."""

from functools import partial

import jax
import numpy as np
import pytest
from jax import lax

from memtx.ops.select import SHORT, by_rank, select

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("entries", [7, 30, SHORT, SHORT + 1, 2 * SHORT, 1088, 17 * 1024])
def test_select_is_top_k(entries):
    scores = RNG.integers(0, entries // 3, (5, 2, entries)).astype(np.float32)  # with ties
    value, place = jax.jit(select, static_argnums=1)(scores, 7)
    expected, first = lax.top_k(scores, 7)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(place, first)
    last = entries - 1 - lax.top_k(scores[..., ::-1], 7)[1]
    assert (first != last).any()  # control: there are ties


def test_short_rows_are_ranked_as_top_k_sorts():
    special = np.array([0, -0.0, 1, np.nan, -np.inf, np.inf, -np.nan, 0, -0.0, 1, 1e-45, -1e-45, 3e38], np.float32)
    rows = np.stack([RNG.permutation(special) for _ in range(5)])
    for ours, theirs in zip(jax.jit(by_rank, static_argnums=1)(rows, len(special)), lax.top_k(rows, len(special)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_only_rows_that_cannot_be_grouped_are_sorted():
    sorts = lambda size, k: "TopK" in jax.jit(partial(select, k=k)).lower(np.zeros((4, size), np.float32)).compile().as_text()  # noqa: E731
    assert [sorts(SHORT, 3), sorts(8 * SHORT, 3), sorts(SHORT + 1, 3)] == [False, False, True]
