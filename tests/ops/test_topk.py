"""Search: exact equals its definition and brute force in float64 for all blocks and devices; approximate has its recall.

B stream, T queries, M entries, N query heads, K key heads, H head dim, R neighbours.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from memtx.ops.topk import LAST, buckets, search, search_plain

B, T, M, N, K, H = 4, 3, 37, 4, 2, 5


def data(entries=M, time=T):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(B, time, N, H)).astype(np.float32)
    key = rng.normal(size=(B, entries, K, H)).astype(np.float32)
    return q, key, np.stack([rng.permutation(entries) for _ in range(B)]) - entries // 4


def brute(q, key, ids, first, end, k, metric):
    """The k best of each query by a float64 loop over all of its pairs; -1 where nothing is left to be seen."""
    best = np.full((*q.shape[:3], k), -1)
    for b, t, n in np.ndindex(*q.shape[:3]):
        query, keys = q[b, t, n].astype(float), key[b, :, n // (N // K)].astype(float)
        score = keys @ query if metric == "dot" else -((keys - query) ** 2).sum(1)
        order = [j for j in np.argsort(-score, kind="stable") if ids[b, j] >= 0 and first[b, t] <= ids[b, j] < end[b, t]][:k]
        best[b, t, n, : len(order)] = order
    return best


def found(args, k, search=search, **how):
    q, key, ids, *span = map(jnp.asarray, args)
    score, index = jax.jit(partial(search, k=k, **how))(q, key, ids, span)
    return np.where(np.isfinite(score), index, -1)


def measured_recall(found_TR, exact_TR) -> float:
    """The share of the exact neighbours that were found. Negative ids are not neighbours."""
    exact_TR = np.asarray(exact_TR)
    hit_TR = (exact_TR[..., :, None] == np.asarray(found_TR)[..., None, :]).any(-1) & (exact_TR >= 0)
    return hit_TR.sum() / max((exact_TR >= 0).sum(), 1)


@pytest.mark.parametrize("alike", [False, True])  # whether all queries of a row see the same: a CPU masks within the dot then
@pytest.mark.parametrize("block", [5, 12, 37, 4096])
@pytest.mark.parametrize("metric", ["dot", "l2"])
def test_exact_is_brute_force(metric, block, alike):
    q, key, ids = data()
    first, end = np.arange(B * T).reshape(B, T), np.arange(B * T).reshape(B, T) + np.arange(T) * 7
    if alike:
        first = np.repeat(first[:, :1], T, 1)
        end = first + 4
    expected = brute(q, key, ids, first, end, 6, metric)
    np.testing.assert_array_equal(found((q, key, ids, first, end), 6, metric=metric, block=block), expected)
    np.testing.assert_array_equal(found((q, key, ids, first, end), 6, search_plain, metric=metric), expected)
    assert (expected >= 0).any()
    assert (expected < 0).any()
    other = brute(q, key, ids, first + 1, end, 6, metric)
    assert (expected != other).any()  # control: the bounds matter


@pytest.mark.parametrize(("entries", "block"), [(2500, 1000), (2500, 4096), (2560, 4096)])  # the last in groups of groups
def test_of_equal_scores_the_lower_index_comes_first_in_long_rows_too(entries, block):
    rng, time, k = np.random.default_rng(3), 130, 8  # more than a tile of queries, more than k groups
    q, key = rng.integers(-1, 2, (1, time, 1, 2)).astype(np.float32), rng.integers(-2, 3, (1, entries, 1, 2)).astype(np.float32)
    ids = np.arange(entries)[None]
    args = q, key, ids, np.zeros((1, time), int), np.full((1, time), LAST)
    score_TM = q[0, :, 0] @ key[0, :, 0].T
    expected = np.argsort(-score_TM, axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found(args, k, block=block)[0, :, 0], expected)
    higher_first = entries - 1 - np.argsort(-score_TM[:, ::-1], axis=-1, kind="stable")[:, :k]
    assert (expected != higher_first).any()  # control: there are ties


def test_a_shared_bank_serves_every_stream():
    q, key, ids = data()
    first, end = np.zeros((B, T), int), np.full((B, T), LAST)
    shared = found((q, key[:1], ids[:1], first, end), 4)
    np.testing.assert_array_equal(shared, found((q, key[[0] * B], ids[[0] * B], first, end), 4))
    np.testing.assert_array_equal(shared, found((q, key[:1], ids[:1], first, end), 4, search_plain))


def test_approximate_search_has_its_recall():
    q, key, ids = data(4096, 16)
    args = q, key, np.abs(ids), np.zeros((B, 16), int), np.full((B, 16), LAST)
    exact = found(args, 16)
    assert measured_recall(exact, exact) == 1
    for target in (0.7, 0.9, 0.97):
        for block in (512, 4096):
            recall = measured_recall(found(args, 16, recall=target, block=block), exact)
            assert target - 0.03 < recall < 1, (target, recall)
    everything = found(args, 16, recall=0.9999)
    assert measured_recall(everything, exact) == 1  # more buckets than entries is exact
    assert buckets(16, 0.9) == 75


def test_nothing_is_differentiated_and_scores_stay_in_blocks():
    q, key, ids = data(8192)
    args = (jnp.asarray(a) for a in (q, key, np.abs(ids), np.zeros((B, T), int), np.full((B, T), LAST)))
    q, key, ids, *span = args

    def total(q, key, block):
        return search(q, key, ids, span, 4, block=block)[0].sum()

    assert not any(np.abs(g).any() for g in jax.grad(total, (0, 1))(q, key, 256))

    def temporary(block):
        return jax.jit(partial(total, block=block)).lower(q, key).compile().memory_analysis().temp_size_in_bytes

    scores = 4 * B * N * T * 8192
    assert temporary(256) < scores / 4
    assert temporary(8192) >= scores  # control: in one block, all scores exist


def test_k_larger_than_the_bank_is_refused():
    q, key, ids = data()
    with pytest.raises(ValueError, match="must be between 1 and the 37 entries"):
        search(q, key, ids, (np.zeros((B, T), int), np.full((B, T), LAST)), 38)


# --- on many devices --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif("config.getoption('devices') == 1", reason="needs --devices=8")
@pytest.mark.parametrize("shared", [False, True])
def test_rows_on_many_devices(shared):
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
    q, key, ids = data(40)
    if shared:
        key, ids = key[:1], ids[:1]
    first, end = np.zeros((B, T), int), np.arange(B * T).reshape(B, T)
    bank = P(None if shared else "data")
    specs = (P("data"), bank, bank, P("data"), P("data"))
    args = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip((q, key, ids, first, end), specs, strict=True)]
    run = jax.jit(lambda q, key, ids, *span: search(q, key, ids, span, k=6, block=7))
    score, index = run(*args)
    np.testing.assert_array_equal(np.where(np.isfinite(score), index, -1), found((q, key, ids, first, end), 6))
    assert " all-gather(" not in run.lower(*args).compile().as_text()
    plain = jax.jit(lambda q, key: jax.lax.top_k(jnp.einsum("BTNH,BMNH->BNTM", q[:, :, :2], key), 6))
    if not shared:
        assert " all-gather(" in plain.lower(args[0], args[1]).compile().as_text()  # control: the partitioner alone gathers
