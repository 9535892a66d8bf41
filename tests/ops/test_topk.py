"""Search: exact equals its definition and brute force in float64 for all blocks and devices; approximate has its recall.

B stream, T queries, M entries, N query heads, K key heads, H head dim, R neighbours.
"""

import functools
import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from memtx.contract.case import gathers
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


@functools.cache
def jitted(search, **how):
    return jax.jit(partial(search, **how))


def found(args, k, search=search, **how):
    q, key, ids, *span = map(jnp.asarray, args)
    score, index = jitted(search, k=k, **how)(q, key, ids, span)
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


@pytest.mark.thorough
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


# --- any bank ---------------------------------------------------------------------------------------------------------------

SHAPES = [(1, 3, 37, 5, 37, "dot"), (2, 3, 37, 12, 4, "l2"), (1, 70, 300, 128, 8, "dot")]  # banks, T, M, block, k, metric


@st.composite
def searches(draw):
    """The arguments of a search with few different keys, so that scores are equal, and with queries that see little."""
    banks, time, entries, block, k, metric = draw(st.sampled_from(SHAPES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = draw(st.sampled_from([1, 2, 50]))  # 1: all keys are equal
    q = rng.integers(-values, values + 1, (2, time, N, H)).astype(np.float32)
    key = rng.integers(-values + 1, values, (banks, entries, K, H)).astype(np.float32)
    ids = np.stack([rng.permutation(entries) for _ in range(banks)]) - draw(st.integers(0, entries + 1))
    first = rng.integers(0, draw(st.sampled_from([1, entries])), (2, time))
    end = first + rng.integers(0, draw(st.sampled_from([1, 3, 2 * entries])), (2, time))  # 1: the queries see nothing
    return (q, key, ids, first, end), k, block, metric


@pytest.mark.thorough
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(searches())
def test_any_search_is_its_definition(case):
    args, k, block, metric = case
    plain = found(args, k, search_plain, metric=metric)
    np.testing.assert_array_equal(found(args, k, metric=metric, block=block), plain)


# --- on many devices --------------------------------------------------------------------------------------------------------


many_devices = pytest.mark.skipif("config.getoption('devices') == 1", reason="needs --devices=8")


def on_mesh(mesh, args, bank):
    """Shard the arguments of a search: queries over `data` if it divides them, and the bank as given."""
    rows = P("data") if len(args[0]) % mesh.shape["data"] == 0 else P()
    specs = (rows, bank, bank, rows, rows)
    return [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(args, specs, strict=True)]


@many_devices
def test_rows_on_many_devices():
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
    q, key, ids = data(40)
    args = q, key, ids, np.zeros((B, T), int), np.arange(B * T).reshape(B, T)
    sharded = on_mesh(mesh, args, P("data"))
    run = jax.jit(lambda q, key, ids, *span: search(q, key, ids, span, k=6, block=7))
    score, index = run(*sharded)
    np.testing.assert_array_equal(np.where(np.isfinite(score), index, -1), found(args, 6))
    assert gathers(run.lower(*sharded).compile().as_text()) == []
    plain = jax.jit(lambda q, key: jax.lax.top_k(jnp.einsum("BTNH,BMNH->BNTM", q[:, :, :2], key), 6))
    assert gathers(plain.lower(*sharded[:2]).compile().as_text())  # control: the partitioner alone gathers


@many_devices
@pytest.mark.parametrize(
    ("shape", "entries", "k", "rows"),
    [(shape, entries, 6, 4) for shape in [(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (4, 2)] for entries in (40, 37)]
    + [((4, 2), 9, 9, 4), ((4, 2), 40, 6, 3)],  # most devices have fewer than k entries; `data` does not divide the rows
)
def test_a_shared_bank_on_many_devices_is_one_bank(shape, entries, k, rows):
    mesh = jax.make_mesh(shape, ("data", "model"), (AxisType.Auto,) * 2, devices=jax.devices()[: math.prod(shape)])
    rng = np.random.default_rng(5)
    q = rng.integers(-2, 3, (rows, T, N, H)).astype(np.float32)
    key = rng.integers(-1, 2, (1, entries, K, H)).astype(np.float32)  # few different ones: scores are equal
    args = q, key, np.arange(entries)[None] - 2, np.zeros((rows, T), int), np.arange(rows * T).reshape(rows, T) * 5
    bank = P(None, ("data", "model")) if entries % mesh.size == 0 else P()
    run = jax.jit(lambda q, key, ids, *span: search(q, key, ids, span, k, block=3))
    score, index = run(*on_mesh(mesh, args, bank))
    one_score, one_index = run(*args)
    np.testing.assert_array_equal(score, one_score)
    seen = np.isfinite(one_score)
    np.testing.assert_array_equal(np.where(seen, index, -1), np.where(seen, one_index, -1))
    np.testing.assert_array_equal(np.where(seen, index, -1), found(args, k, search_plain))
    assert (score[..., :-1] == score[..., 1:]).any()
    assert not seen.all()


@many_devices
def test_entries_of_a_shared_bank_stay_on_their_devices():
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
    q, key, ids = data(4096)
    args = on_mesh(mesh, (q, key[:1], ids[:1], np.zeros((B, T), int), np.full((B, T), LAST)), P(None, ("data", "model")))

    def moved(f):
        sizes = [re.findall(r"\[([\d,]+)\]", line) for line in gathers(jax.jit(f).lower(*args).compile().as_text())]
        return max(math.prod(map(int, size.split(","))) for shapes in sizes for size in shapes)

    assert moved(lambda q, key, ids, *span: search(q, key, ids, span, 6)) <= B * T * N * 6 * mesh.size
    assert moved(lambda q, key, ids, *span: search_plain(q, key, ids, span, 6)) >= 4096  # control
