"""What memorizing, landmark and knn_lm promise beyond the contract: everything retrieved is full attention, ids across wraps,
attributions, approximate search, and a datastore beside the cache.

B stream, T time, N query heads, K kv heads, H head dim, D model, R neighbours.
"""

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.config import Model
from memtx.contract.case import BATCH, DIMS, Case, at, distance
from memtx.core import collect
from memtx.errors import UserError
from memtx.library.entries import answering_state, read_entries
from memtx.library.record import Document
from memtx.library.view import make_view
from memtx.memory.knn_lm import KNNLM
from memtx.memory.landmark import AHEAD, Landmark
from memtx.memory.memorizing import Memorizing
from memtx.nn.linear import unit
from memtx.runs.configure import build
from tests.golden.base import K, N, softmax
from tests.ops.test_topk import measured_recall

EXACT, MOVED = 2e-5, 1e-3
PLAIN = dataclasses.replace(DIMS, position="none")


def case(cls, dims=DIMS, **config) -> Case:
    return Case(cls.__name__.lower(), cls, cls.Config(**config), dims)


def heads(x):
    """q, k, v in float64, one kv head for each query head."""
    q, k, v = (np.asarray(a, np.float64) for a in x)
    return q, np.repeat(k, N // K, 2), np.repeat(v, N // K, 2)


@functools.cache
def reader(case: Case):
    """The compiled call that collects attributions."""
    return jax.jit(collect(case.apply, "attribution"))


def reads(case: Case, x, cuts):
    """What each call reads: {name: [B, T of all calls, N, R]}."""
    state, start, found = case.init_state(), 0, []
    run = partial(reader(case), case.params)
    for time in cuts:
        part = jax.tree.map(lambda a, start=start, time=time: a[:, start : start + time], x)
        (_, state), aux = run(part, state, at(start, time))
        [read] = aux["attribution/reads"]
        found.append({name: np.asarray(getattr(read, f"{name}_BTNR")) for name in ("id", "position", "weight")})
        start += time
    return {name: np.concatenate([part[name] for part in found], 1) for name in found[0]}


def in_16_bits(x):
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), x)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "of",
    [
        case(Memorizing, window=1, segment=16, memory=48, neighbours=4),
        case(Memorizing, window=1, segment=16, memory=48, neighbours=4, normalise=False),
        case(Landmark, dataclasses.replace(DIMS, score_scale=0.3), block=4, memory=14, neighbours=4),
    ],
    ids=["memorizing", "memorizing-plain", "landmark"],
)
def test_entries_are_chosen_by_float32_scores_of_16_bit_inputs(of):
    x = in_16_bits(of.x(0, 64))
    exact = jax.tree.map(lambda a: a.astype(jnp.float32), x)
    chosen = np.sort(reads(of, exact, [64])["id"], -1)
    np.testing.assert_array_equal(np.sort(reads(of, x, [64])["id"], -1), chosen)
    if of.cls is Memorizing and of.config.normalise:  # control: directions in 16 bits
        rounded = jax.tree.map(lambda a: unit(a).astype(jnp.float32), x)
        assert (np.sort(reads(of, rounded, [64])["id"], -1) != chosen).any()


# --- memorizing -----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_memorizing_with_all_neighbours_is_full_attention_over_the_memory():
    big, small = (case(Memorizing, window=1, segment=4, memory=8, neighbours=n, gate=30.0) for n in (8, 7))  # only the memory
    x = big.x(0, 32)
    y = big.run(x, [16, 16])[0]
    q, k, v = heads(x)
    q, k = (a / np.sqrt((a**2).sum(-1, keepdims=True) + 1e-6) for a in (q, k))
    score = np.einsum("btnh,bsnh->bnts", q, k) * np.sqrt(DIMS.head_dim)
    begin = np.arange(32)[:, None] // 4 * 4
    seen = (np.arange(32) < begin) & (np.arange(32) >= begin - 8)
    expected = np.einsum("bnts,bsnh->btnh", softmax(score[:, :, 8:], seen[8:]), v)
    assert distance(y[:, 8:], expected) <= EXACT
    assert distance(small.run(x, [16, 16])[0][:, 8:], expected) > MOVED  # control: one neighbour fewer


@pytest.mark.parametrize(
    "cuts", [pytest.param([30], marks=pytest.mark.thorough), [1] * 30, [11, 4, 11, 4]], ids=["whole", "tokens", "odd"]
)
def test_memorizing_reads_the_right_ids_across_three_wraps(cuts):
    memorizing = case(Memorizing, window=2, segment=3, memory=4, neighbours=4)
    assert 3 * (4 + 2 * 3) <= 30  # slots
    x = memorizing.x(0, 30)
    found = reads(memorizing, x, cuts)
    for t in range(30):
        begin = t // 3 * 3
        expected = [-1] * (4 - min(begin, 4)) + list(range(max(0, begin - 4), begin))
        assert (np.sort(found["id"][:, t], -1) == expected).all()
    np.testing.assert_array_equal(found["position"], found["id"])  # one document: provenance is the place in it
    weight = found["weight"].sum(-1)
    np.testing.assert_allclose(weight[:, 3:], 0.5, atol=1e-6)  # the gate at its start
    assert not weight[:, :3].any()


def test_memorizing_finds_the_key_that_was_hidden():
    memorizing = case(Memorizing, window=2, segment=4, memory=12, neighbours=1)
    q, k, v = memorizing.x(0, 16)
    q = q.at[:, 14].set(10 * jnp.repeat(k[:, 5], N // K, 1))
    assert (reads(memorizing, (q, k, v), [16])["id"][:, 14] == 5).all()


@pytest.mark.thorough
def test_memorizing_with_approximate_search_reports_its_recall():
    sizes = {"window": 4, "segment": 224, "memory": 448, "neighbours": 8}
    exact, rough = case(Memorizing, **sizes), case(Memorizing, **sizes, recall=0.9)
    x = exact.x(0, 672)
    ids = [reads(c, x, [672])["id"][:, 448:] for c in (exact, rough)]
    assert 0.85 < measured_recall(ids[1], ids[0]) < 1


def test_memorizing_reads_without_writing():
    memorizing = case(Memorizing, window=3, segment=4, memory=8, neighbours=8)
    q, k, v = memorizing.x(0, 9)
    state = memorizing.run((q, k, v), [8])[1]
    y, after = memorizing.call((q[:, 8:], None, None), state, at(8, 1))
    assert distance(after, state) == 0
    assert (
        distance(y, memorizing.call((q[:, 8:], k[:, 8:], v[:, 8:]), state, at(8, 1))[0]) > MOVED
    )  # its own token is not there
    assert np.isfinite(np.asarray(y)).all()


# --- landmark -------------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_landmark_with_all_blocks_is_the_grouped_softmax_over_everything():
    everything, some = (case(Landmark, PLAIN, block=4, memory=8, neighbours=n) for n in (8, 2))
    x = everything.x(0, 32)
    q, k, v = heads(x)
    score = np.einsum("btnh,bsnh->bnts", q, k) / 2
    mark = k.reshape(BATCH, 8, 4, N, -1).mean(2)  # the pooled key at the start
    gate = np.einsum("btnh,bcnh->bntc", q, mark) / 2
    block, now = np.arange(32) // 4, np.arange(32)[:, None] // 4
    both = np.concatenate([score, gate], -1)
    seen = np.concatenate([(block == now) & (np.arange(32) <= np.arange(32)[:, None]), np.arange(8) < now], 1)
    p = softmax(both, seen)
    inside = np.exp(score) / np.repeat(np.exp(score).reshape(BATCH, N, 32, 8, 4).sum(-1), 4, -1)
    weight = p[..., :32] + inside * np.repeat(p[..., 32:], 4, -1)
    np.testing.assert_allclose(weight.sum(-1), 1)
    expected = np.einsum("bnts,bsnh->btnh", weight, v)
    assert distance(everything.run(x, [13, 19])[0], expected) <= EXACT
    assert distance(some.run(x, [13, 19])[0], expected) > MOVED  # control: fewer blocks


@pytest.mark.thorough
def test_landmark_reads_blocks_across_three_wraps_and_says_which():
    landmark = case(Landmark, block=3, memory=4, neighbours=4)
    found = reads(landmark, landmark.x(0, 48), [5, 11, 5, 11, 5, 11])
    for t in range(48):
        now = t // 3
        expected = [-1] * (4 - min(now, 4)) + list(range(max(0, now - 4), now))
        assert (np.sort(found["id"][:, t], -1) == expected).all()
    np.testing.assert_array_equal(found["position"], np.where(found["id"] < 0, -1, 3 * found["id"]))


@pytest.mark.thorough
def test_landmark_reads_the_same_in_calls_longer_than_its_bank_has_room_for():
    landmark = case(Landmark, block=3, memory=4, neighbours=2)
    x = landmark.x(0, 3 * (2 * AHEAD + 5))
    whole, state = landmark.run(x, [x[0].shape[1]])
    cut, after = landmark.run(x, [37, 37, 37])
    assert distance(whole, cut) <= EXACT
    assert distance(state, after) <= EXACT
    short = landmark.run(tuple(np.roll(a, -6, 1) for a in x), [x[0].shape[1]])[0]  # control: begins two blocks later
    assert distance(whole[:, 6:12], short[:, :6]) > MOVED


# --- knn_lm: the shared datastore -------------------------------------------------------------------------------------------


SLOTS = 256  # of the smallest datastore


@pytest.fixture(scope="module")
def model():
    """A model, its parameters, and the entries of four documents, as a library reads them (tests/library has the rest)."""
    settings = KNNLM.Config(memory=0, datastore=SLOTS, neighbours=5, temperature=4.0, chunk=32)
    sizes = {"vocab_size": 16, "width": 8, "num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "ff_dim": 16}
    lm = build(Model(stacks=((("window",), 1),), head="knn_lm", memory={"knn_lm": settings}, **sizes))
    params = lm.init(jax.random.key(0))
    texts = {str(n): np.random.default_rng(n).integers(0, 16, 9 + 4 * n) for n in range(4)}
    documents = [Document(name, "", "", len(ids), "", len(ids) - 1, digest=name) for name, ids in texts.items()]
    view = make_view(documents, lambda name: read_entries(lm, params, texts[name]))
    np.testing.assert_array_equal(view.groups["0"].arrays["1"], np.concatenate([ids[1:] for ids in texts.values()]))
    return lm, params, view


def test_the_datastore_is_mixed_in_by_the_formula(model):
    """Against a float64 brute force over all entries."""
    lm, params, view = model
    lm, state = answering_state(lm, view, 2)
    token = np.random.default_rng(9).integers(0, 16, (2, 6))

    def run(token, state):
        return collect(lm, "hidden", "attribution")(params, token, state)

    (y, _), aux = jax.jit(run)(token, state)
    (plain, _), _ = jax.jit(run)(token, lm.init_state(2))  # an empty datastore is the plain model
    arrays = view.groups["0"].arrays
    f, keys, values = (np.asarray(a, np.float64) for a in (aux["hidden"][0], arrays["0"], arrays["1"]))
    for b, t in np.ndindex(2, 6):
        far = ((keys - f[b, t]) ** 2).sum(1)
        nearest = np.argsort(far)[:5]
        np.testing.assert_array_equal(np.sort(aux["attribution/reads"][0].id_BTNR[b, t, 0]), np.sort(nearest))
        weight = np.exp(-far[nearest] / 4)
        p = 0.75 * np.asarray(jax.nn.softmax(plain[b, t]), np.float64)
        np.add.at(p, values[nearest].astype(int), 0.25 * weight / weight.sum())
        np.testing.assert_allclose(jax.nn.softmax(y[b, t]), p, atol=1e-6)


def test_all_streams_share_the_datastore_and_a_reset_leaves_it(model):
    lm, params, view = model
    lm, state = answering_state(lm, view, 2)
    seg = at(0, 6)
    seg = dataclasses.replace(jax.tree.map(lambda a: a[:2], seg), reset_B=jnp.array([True, False]))
    _, after = jax.jit(lm.__call__)(params, np.zeros((2, 6), int), state, seg)
    assert distance(after.head.datastore, state.head.datastore) == 0
    assert state.head.datastore.cursor.shape == ()


@pytest.mark.thorough
def test_cache_and_datastore_together_read_both(model):
    lm, _, view = model
    store = answering_state(lm, view)[1].head.datastore
    both = case(KNNLM, memory=8, datastore=SLOTS, neighbours=3, chunk=4)
    state = dataclasses.replace(both.init_state(), datastore=store)
    x = both.x(0, 8)
    y = both.call(x, state, at(0, 8))[0]
    np.testing.assert_allclose(jax.nn.logsumexp(y, -1), jax.nn.logsumexp(x[1], -1), atol=1e-5)
    assert distance(y, both.call(x, both.init_state(), at(0, 8))[0]) > MOVED
    only = case(KNNLM, memory=0, datastore=SLOTS, neighbours=3)
    assert distance(y, only.call(x, dataclasses.replace(state, cache=()), at(0, 8))[0]) > MOVED


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (Memorizing, {"memory": 8, "neighbours": 9}, "neighbours=9 is more than memory=8"),
        (Memorizing, {"recall": 0}, "recall must be above 0"),
        (Landmark, {"memory": 2, "neighbours": 3}, "neighbours=3 is more than memory=2"),
        (Landmark, {"block": 0}, "block must be at least 1"),
        (KNNLM, {"memory": 0}, "memory and datastore must be at least 0"),
        (KNNLM, {"memory": 3, "neighbours": 4}, "neighbours=4 is more"),
        (KNNLM, {"lam": 1.0}, "lam must be in"),
    ],
)
def test_settings_that_cannot_be_are_refused(cls, settings, message):
    with pytest.raises(UserError, match=message):
        cls.Config(**settings)
