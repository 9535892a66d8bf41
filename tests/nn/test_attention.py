"""attend() against a plain softmax over all keys in float64, in NumPy, and its tiles against their plain definition.

B stream, T query time, S source time, N query heads, K kv heads, H head dim.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.core import Dims, segment
from memtx.memory import MEMORIES
from memtx.memory.full import Full
from memtx.nn.attention import KeySet, attend, view
from memtx.nn.positions import alibi_slopes, t5_bucket
from memtx.ops import attention
from memtx.ops.attention import TILE

B, H = 2, 8


def make(rng, time, sizes, *, heads=4, kv_heads=2, window=None, known=True, first=1_000_000, dtype=jnp.float32):
    """Queries at `first`.., after memories of `sizes` tokens each (oldest first, partly empty) and the call's own keys.

    known: whether the last memory and the call's own keys have positions that are known at compile time.
    """
    before = sum(sizes)
    seg = segment(first + np.arange(time) + np.zeros((B, 1), int), jnp.array([time, time - time // 4]))
    sources, start = [], first - before
    for i, size in enumerate([*sizes, time]):
        own = i == len(sizes)
        valid = (
            np.arange(size) >= np.array([[0], [size // 3]])
            if not own
            else np.arange(size) < np.array([[time], [time - time // 4]])
        )
        k, v = (jnp.asarray(rng.normal(size=(B, size, kv_heads, H)), dtype) for _ in range(2))
        position = jnp.asarray(start + np.arange(size) + np.zeros((B, 1), int), jnp.int32)
        valid = jnp.asarray(valid & np.ones((B, 1), bool))
        if known and own:
            sources.append(KeySet.call(k, v, seg, window=window))
        elif known and i == len(sizes) - 1:
            sources.append(KeySet.recent(k, v, valid, window=window))
        else:
            sources.append(KeySet(k, v, position, valid, window=window))
        start += size
    q = jnp.asarray(rng.normal(size=(B, time, heads, H)), dtype)
    return q, sources, seg


def run(q, sources, seg, dims):
    """`attend`, compiled."""
    return jax.jit(lambda q: attend(q, sources, seg, dims))(q)


def positions(source, seg):
    """The positions of the keys in the document, [B, S]."""
    if source.position_BS is not None:
        return np.asarray(source.position_BS, np.int64)
    return np.asarray(seg.position_BT[:, :1] + source.positions(seg)[1], np.int64)


def oracle(q, sources, seg, dims, table=None):
    """Every score of every source, masked, in float64."""
    q = np.asarray(q, np.float64)
    scores, values = [], []
    for source in sources:
        at = np.asarray(seg.position_BT if source.query_position_BT is None else source.query_position_BT, np.int64)
        position = positions(source, seg)
        age = at[:, :, None] - position[:, None]
        k, v = (
            np.repeat(np.asarray(a, np.float64), q.shape[2] // dims.num_kv_heads, 2) for a in (source.k_BSKH, source.v_BSKH)
        )
        rotate = turn if dims.position == "rope" else lambda x, *_: x
        score = np.einsum("btnh,bsnh->bnts", rotate(q, at, dims), rotate(k, position, dims)) / np.sqrt(q.shape[-1])
        if dims.position == "alibi":
            score -= alibi_slopes(dims.num_heads)[:, None, None] * np.maximum(age, 0)[:, None]
        if dims.position == "t5":
            score += np.moveaxis(np.asarray(table, np.float64)[np.asarray(t5_bucket(jnp.asarray(age, jnp.int32)))], -1, 1)
        seen = (age >= 0) & (age < (source.window or np.inf))
        if source.valid_BS is not None:
            seen &= np.asarray(source.valid_BS)[:, None]
        scores.append(np.where(seen[:, None], score, -np.inf))
        values.append(v)
    score = np.concatenate(scores, -1)
    weight = np.exp(score - score.max(-1, keepdims=True))
    return np.einsum("bnts,bsnh->btnh", weight / weight.sum(-1, keepdims=True), np.concatenate(values, 1))


def turn(x, position, dims):
    """Rotary positions as complex numbers, from position 0."""
    half = x.shape[-1] // 2
    frequency = dims.rope_base ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * position[..., None, None] * frequency)
    return np.concatenate([z.real, z.imag], -1)


def real(seg, y):
    """Outputs of real tokens."""
    return np.asarray(y, np.float64)[np.asarray(seg.mask_BT)]


CASES = {
    "one memory": {"time": 12, "sizes": [9]},
    "window": {"time": 12, "sizes": [9], "window": 9},
    "window wider than the memory": {"time": 12, "sizes": [4], "window": 15},
    "two memories": {"time": 10, "sizes": [5, 7]},
    "no memory": {"time": 11, "sizes": []},
    "positions unknown": {"time": 12, "sizes": [9], "window": 6, "known": False},
    "one query": {"time": 1, "sizes": [2 * TILE + 3], "window": 150},
    "many blocks": {"time": 2 * TILE + 5, "sizes": [TILE + 9], "window": TILE + 9},
    "long memory": {"time": 3, "sizes": [9 * TILE + 1], "heads": 2, "kv_heads": 2},
    "no groups": {"time": 12, "sizes": [9], "kv_heads": 4},
}


@pytest.mark.parametrize("position", ["rope", "alibi", "t5", "none"])
@pytest.mark.parametrize("example", CASES.values(), ids=CASES)
def test_equals_plain_softmax_over_all_keys(example, position):
    q, sources, seg = make(np.random.default_rng(0), **example)
    dims = Dims(32, q.shape[2], sources[0].k_BSKH.shape[2], H, position)
    table = np.random.default_rng(1).normal(size=(32, dims.num_heads))
    seg = seg.replace(shared={"relative_bias": jnp.asarray(table, jnp.float32)})
    y = run(q, sources, seg, dims)
    np.testing.assert_allclose(real(seg, y), real(seg, oracle(q, sources, seg, dims, table)), atol=2e-5)


def test_a_source_with_its_own_query_positions():
    """Sinks: the first tokens are at a fixed distance."""
    q, [sink, own], seg = make(np.random.default_rng(0), 12, [4], known=False)
    at = jnp.broadcast_to(sink.position_BS[:, -1:] + 30, seg.position_BT.shape)
    sources = [dataclasses.replace(sink, query_position_BT=at), own]
    dims = Dims(32, 4, 2, H)
    np.testing.assert_allclose(real(seg, run(q, sources, seg, dims)), real(seg, oracle(q, sources, seg, dims)), atol=2e-5)


@pytest.mark.parametrize("often_empty", [False, True])
def test_gradients_equal_float64_differences(often_empty):
    """Of q, and of keys and values of every source, also where the source is one that is skipped when empty."""
    q, sources, seg = make(np.random.default_rng(0), 6, [5], window=7)
    sources = [dataclasses.replace(sources[0], often_empty=often_empty), sources[1]]
    dims = Dims(32, 4, 2, H)
    g = np.random.default_rng(1).normal(size=q.shape) * np.asarray(seg.mask_BT)[..., None, None]
    arrays = [q] + [a for s in sources for a in (s.k_BSKH, s.v_BSKH)]

    def put(arrays):
        q, *kv = arrays
        pairs = zip(sources, kv[::2], kv[1::2], strict=True)
        return q, [dataclasses.replace(s, k_BSKH=k, v_BSKH=v) for s, k, v in pairs]

    grads = jax.jit(jax.grad(lambda arrays: (attend(*put(arrays), seg, dims) * g).sum()))(arrays)

    def loss(arrays):
        return (np.where(g == 0, 0, oracle(*put(arrays), seg, dims)) * g).sum()

    arrays = [np.asarray(a, np.float64) for a in arrays]
    for i, grad in enumerate(grads):
        direction = np.random.default_rng(i + 2).normal(size=grad.shape)
        ends = [loss([a + sign * 1e-5 * direction if j == i else a for j, a in enumerate(arrays)]) for sign in (1, -1)]
        assert float((np.asarray(grad) * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-4)


def test_a_memory_that_gets_no_gradient_costs_no_backward_dots():
    q, [memory, own], seg = make(np.random.default_rng(0), 8, [8])
    dims = Dims(32, 4, 2, H)

    def dots(argnums):
        def loss(q, k, v):
            return attend(q, [dataclasses.replace(memory, k_BSKH=k, v_BSKH=v), own], seg, dims).sum()

        return str(jax.make_jaxpr(jax.grad(loss, argnums))(q, memory.k_BSKH, memory.v_BSKH)).count("dot_general")

    assert dots((0,)) == dots((0, 1, 2)) - 2  # dk and dv


def test_an_empty_source_is_skipped_and_gives_nothing():
    q, [memory, own], seg = make(np.random.default_rng(0), 8, [8])
    dims = Dims(32, 4, 2, H)
    poison = dataclasses.replace(
        memory, valid_BS=jnp.zeros_like(memory.valid_BS), v_BSKH=jnp.full_like(memory.v_BSKH, jnp.nan), often_empty=True
    )
    y = run(q, [poison, own], seg, dims)
    np.testing.assert_allclose(real(seg, y), real(seg, run(q, [own], seg, dims)), atol=1e-6)
    read = dataclasses.replace(poison, often_empty=False)  # control: a set that is not skipped is read, and 0 * nan is nan
    assert np.isnan(np.asarray(run(q, [read, own], seg, dims))).any()


def test_bfloat16_in_bfloat16_out_and_close():
    q, sources, seg = make(np.random.default_rng(0), 12, [9], dtype=jnp.bfloat16)
    dims = Dims(32, 4, 2, H)
    y = run(q, sources, seg, dims)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(real(seg, y), real(seg, oracle(q, sources, seg, dims)), atol=0.05)


def test_queries_that_see_nothing_are_finite_and_so_are_gradients():
    q, sources, seg = make(np.random.default_rng(0), 12, [9])
    sources = [s.without(jnp.ones(s.k_BSKH.shape[:2], bool)) for s in sources]
    dims = Dims(32, 4, 2, H)
    assert np.isfinite(np.asarray(run(q, sources, seg, dims))).all()
    assert np.isfinite(np.asarray(jax.grad(lambda q: run(q, sources, seg, dims).sum())(q))).all()


# --- tiles against the definition -------------------------------------------------------------------------------------------


def chunked(sets, seg):
    """The same sets, of which queries see the keys of their own chunk of 5 tokens."""
    chunk = lambda at: jnp.asarray(at // 5, jnp.int32)  # noqa: E731
    return [s.within_chunks(chunk(seg.position_BT), chunk(positions(s, seg))) for s in sets]


def biased(sets, seg):
    """The same sets with a bias that differs between rows, heads, queries and keys."""
    rng = np.random.default_rng(7)

    def add(s):
        table = jnp.asarray(rng.normal(size=(B, 4, seg.position_BT.shape[1], s.k_BSKH.shape[1])), jnp.float32)
        return dataclasses.replace(s, bias=lambda queries, keys: table[:, :, queries, keys])

    return [add(s) for s in sets]


def later(sets, seg):
    """The same sets, with the call's own tokens seen in both directions."""
    return [*sets[:-1], KeySet.call(sets[-1].k_BSKH, sets[-1].v_BSKH, seg, future=True)]


VARIANTS = {"as it is": lambda sets, seg: sets, "chunks": chunked, "bias": biased, "future": later}


def combinations():
    """An example, a variant and a position encoding. Those that are not `thorough` have every pair of two of the three."""
    names, positions = ["two memories", "window", "positions unknown", "many blocks"], ["rope", "alibi", "t5"]
    for (i, name), (j, variant), (k, position) in itertools.product(*map(enumerate, (names, VARIANTS, positions))):
        marks = [] if (i + j) % 3 == k else [pytest.mark.thorough]
        yield pytest.param(name, VARIANTS[variant], position, id=f"{name}-{variant}-{position}", marks=marks)


@pytest.mark.parametrize(("name", "variant", "position"), [*combinations()])
def test_tiles_are_the_definition(name, variant, position):
    """Values and gradients, for several sets, windows, later keys, chunks, biases and shared key heads."""
    q, sets, seg = make(np.random.default_rng(0), **CASES[name])
    dims = Dims(32, 4, 2, H, position)
    seg = seg.replace(shared={"relative_bias": jnp.asarray(np.random.default_rng(1).normal(size=(32, 4)), jnp.float32)})
    sets = variant(sets, seg)
    g = jnp.asarray(np.random.default_rng(2).normal(size=q.shape), jnp.float32) * seg.mask_BT[..., None, None]

    def loss(arrays, f):
        q, ks, vs = arrays
        new = [dataclasses.replace(s, k_BSKH=k, v_BSKH=v) for s, k, v in zip(sets, ks, vs, strict=True)]
        return (f([view(q, s, seg, dims) for s in new]) * g).sum()

    arrays = q, [s.k_BSKH for s in sets], [s.v_BSKH for s in sets]
    tiled, plain = (
        jax.jit(jax.value_and_grad(lambda a, f=f: loss(a, f)))(arrays) for f in (attention.attend_tiled, attention.attend)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=5e-4), tiled, plain)


@pytest.mark.parametrize("change", [chunked, biased, later])
def test_each_variant_changes_the_values(change):
    """The control of the test above."""
    q, sets, seg = make(np.random.default_rng(0), **CASES["two memories"])
    dims = Dims(32, 4, 2, H)
    call = lambda sets: jax.jit(lambda q: attention.attend([view(q, s, seg, dims) for s in sets]))(q)  # noqa: E731
    plain, changed = (real(seg, call(some)) for some in (sets, change(sets, seg)))
    assert np.abs(plain - changed).max() > 1e-2


def test_shear_turns_scores_by_distance_into_scores_by_key():
    score = np.random.default_rng(0).normal(size=(1, 2, 5, 5 + 7))
    sheared = attention.shear(jnp.asarray(score), 7)
    i, j = np.indices((5, 7))
    np.testing.assert_allclose(sheared, score[..., i, 4 - i + j], rtol=1e-6)


def test_tiles_that_no_query_sees_are_not_computed():
    q, sets, seg = make(np.random.default_rng(0), 4 * TILE, [2 * TILE], window=TILE)
    unknown = make(np.random.default_rng(0), 4 * TILE, [2 * TILE], window=TILE, known=False)[1]

    def dots(sets):
        return str(jax.make_jaxpr(lambda q: attend(q, sets, seg, Dims(32, 4, 2, H)))(q)).count("dot_general")

    assert dots(sets) == 2 * (1 + 7)  # of 6 x 4 tiles: the one before the call, and the diagonal with its neighbours
    assert dots(unknown) == 2 * (2 + 4) * 4


def test_a_set_has_positions_or_is_made_by_a_constructor():
    _, [memory, _], _ = make(np.random.default_rng(0), 4, [4])
    with pytest.raises(ValueError, match="give position_BS"):
        KeySet(memory.k_BSKH, memory.v_BSKH, None, None)
    with pytest.raises(ValueError, match="give position_BS"):
        dataclasses.replace(memory, position_BS=jnp.zeros((B, 4), jnp.int32))


@pytest.mark.parametrize("name", ["full", "window", "sink"])
def test_the_same_however_text_is_cut(name):
    """Whole, one token at a time, and in odd cuts: the same outputs."""
    time, dims = 23, Dims(32, 4, 2, H)
    settings = {"full": {"capacity": 9}, "window": {"window": 9}, "sink": {"window": 7, "sinks": 2}}[name]
    memory = MEMORIES[name](MEMORIES[name].Config(**settings), dims, jax.random.key(0))
    rng = np.random.default_rng(0)
    x = [jnp.asarray(rng.normal(size=(B, time, n, H)), jnp.float32) for n in (4, 2, 2)]
    call = jax.jit(memory.__call__)

    def run(cuts):
        state, ys = memory.init_state(B), []
        for a, b in zip([0, *cuts], [*cuts, time], strict=True):
            at = jnp.arange(a, b) + jnp.zeros((B, 1), jnp.int32)
            y, state = call(tuple(part[:, a:b] for part in x), state, segment(at))
            ys.append(y)
        return np.concatenate(ys, 1)

    whole = run([])
    np.testing.assert_allclose(run(range(1, time)), whole, atol=1e-5)
    np.testing.assert_allclose(run([5, 6, 17]), whole, atol=1e-5)


def test_full_in_a_call_that_begins_documents_does_not_read_its_cache():
    """`often_empty`, through the mechanism: the old values of an emptied cache are not read."""
    dims = Dims(32, 4, 2, H)
    memory = Full(Full.Config(capacity=8), dims, jax.random.key(0))
    state = memory.init_state(B)
    poison = dataclasses.replace(state, v_BMKH=jnp.full_like(state.v_BMKH, jnp.nan))
    rng = np.random.default_rng(0)
    x = tuple(jnp.asarray(rng.normal(size=(B, 6, n, H)), jnp.float32) for n in (4, 2, 2))
    seg = segment(jnp.arange(6) + jnp.zeros((B, 1), jnp.int32))
    call = jax.jit(memory.__call__)
    np.testing.assert_array_equal(call(x, poison, seg)[0], call(x, state, seg)[0])
