"""RMT and ARMT around a small body equal the paper's loop over segments in values, gradients and cost."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from memtx.contract.case import DIMS, distance
from memtx.core import collect, detach, emit, segment
from memtx.errors import UserError
from memtx.memory.armt import ARMT, dpfp, recall
from memtx.memory.full import Full
from memtx.memory.rmt import RMT
from memtx.models.stack import Sequence, Stack
from memtx.nn.attention import Projections

M, SEGMENT, EXACT = 2, 4, 2e-5


class Residual(nnx.Module):
    """x + attention over all that was read, counting the tokens that it is called on."""

    def __init__(self, key):
        self.projections, self.memory = Projections(key, DIMS), Full(Full.Config(capacity=64), DIMS, key)

    def init_state(self, batch_size):
        return self.memory.init_state(batch_size)

    def __call__(self, x_BTD, state, seg, *, key=None):
        emit("metric/tokens", jnp.asarray(x_BTD.shape[1]))
        y, state = self.memory(self.projections.heads(x_BTD), state, seg)
        return x_BTD + self.projections.merge(y), state


def build(cls, **changes):
    config = dataclasses.replace(cls.tiny[0], **changes)
    make = Residual if cls is RMT else lambda key: ARMT.wrap_layer(config, DIMS, key, Residual(key))
    return cls(config, DIMS, jax.random.key(1), Sequence([Stack([make], 2, jax.random.key(0))]))


def text(time=12):
    return jax.random.normal(jax.random.key(2), (1, time, 8))


def run(layer, x_BTD, cuts, between=lambda state: state):
    state, ys, start = layer.init_state(1), [], 0
    for time in cuts:
        y, state = layer(x_BTD[:, start : start + time], between(state), segment(start + jnp.arange(time)[None]))
        ys.append(y)
        start += time
    return jnp.concatenate(ys, 1), state


def paper_rmt(layer: RMT, x_BTD):
    """The paper's loop: the body on [m ; x ; m], nothing else in its memory."""
    memory, ys = layer.initial[...][None], []
    for x in jnp.split(x_BTD, x_BTD.shape[1] // SEGMENT, 1):
        whole = jnp.concatenate([memory, x, memory], 1)
        y, _ = layer.body(whole, layer.body.init_state(1), segment(jnp.arange(whole.shape[1])[None]))
        ys.append(y[:, M:-M])
        memory = layer.norm(y[:, -M:])
    return jnp.concatenate(ys, 1), memory


def with_gradients(layer, f):
    """The gradients of the parameters and the input, and the values of f."""
    graph, params = nnx.split(layer)

    def loss(params, x):
        y, memory = f(nnx.merge(graph, params), x)
        return jnp.sin(y).sum() + memory.sum(), (y, memory)

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, text())


@pytest.fixture(scope="module")
def by_the_paper():
    return with_gradients(build(RMT), paper_rmt)


@pytest.mark.thorough
@pytest.mark.parametrize(("cuts", "remat"), [((12,), False), ((1, 6, 5), True)], ids=["whole", "odd"])
def test_rmt_is_the_loop_of_the_paper_in_values_and_gradients(by_the_paper, cuts, remat):
    def ours(layer, x):
        y, state = run(layer, x, cuts)
        return y, state.memory.memory_BMD

    assert distance(with_gradients(build(RMT, remat=remat), ours), by_the_paper) <= EXACT


def reach(cls, between) -> np.ndarray:
    """Whether the outputs of segment s (rows) have a gradient to the input of segment r (columns)."""
    layer = build(cls)

    def outputs(x):
        return run(layer, x, (SEGMENT,) * 3, between)[0].reshape(3, -1).sum(-1)

    gradient = jax.jit(jax.grad(lambda x, weight: weight @ outputs(x)))
    return np.stack([np.abs(gradient(text(), weight)).reshape(3, -1).max(-1) > 0 for weight in np.eye(3, dtype=np.float32)])


@pytest.mark.thorough
@pytest.mark.parametrize("cls", [RMT, ARMT])
def test_the_gradient_flows_through_all_segments_until_detached(cls):
    np.testing.assert_array_equal(reach(cls, lambda state: state), np.tri(3, dtype=bool))
    np.testing.assert_array_equal(reach(cls, detach), np.eye(3, dtype=bool))


@pytest.mark.thorough
@pytest.mark.parametrize(("cls", "around"), [(RMT, 2 * M), (ARMT, M)])
def test_a_token_costs_one_inner_token_but_at_boundaries(cls, around):
    """At a boundary the call is as wide as any row could need: the token and all memory tokens."""
    layer, x = build(cls), text(8)

    @jax.jit
    def tokens(x, state, t):
        (_, state), aux = collect(lambda: layer(x, state, segment(t[None, None])), "metric")()
        return state, sum(map(jnp.sum, aux["metric/tokens"]))

    state, counts = layer.init_state(1), []
    for t in range(8):
        state, count = tokens(x[:, t : t + 1], state, jnp.asarray(t))
        counts.append(int(count) // 2)  # two layers
    boundary, inside = 1 + around, 1
    assert counts == [boundary, inside, inside, boundary] * 2


@pytest.mark.thorough
def test_layers_see_only_their_segment_unless_their_memory_is_kept():
    """With the memory tokens tampered away, nothing else of the first segment reaches the second."""
    x = text(8)
    moved = x.at[:, 1].add(1.0)

    def second(layer, x):
        def forget(state):
            tokens = dataclasses.replace(state.memory, memory_BMD=jnp.zeros_like(state.memory.memory_BMD))
            return dataclasses.replace(state, memory=tokens)

        return np.asarray(run(layer, x, (4, 4), forget)[0][:, 4:])

    wipe, keep = build(RMT), build(RMT, inner="keep")
    np.testing.assert_array_equal(second(wipe, x), second(wipe, moved))
    assert (second(keep, x) != second(keep, moved)).all()


@pytest.mark.thorough
def test_armt_that_only_reads_leaves_its_matrices_as_they_are():
    writer, reader, x = build(ARMT), build(ARMT, write=False), text()
    nnx.update(reader, nnx.state(writer))
    _, state = run(writer, x, (12,))
    after, wrote = (layer(x, state, segment(12 + jnp.arange(12)[None])) for layer in (reader, writer))
    matrices = lambda state: [(m.a_BFD, m.z_BF) for (m,) in state.body]  # noqa: E731
    for old, new, changed in zip(*map(jax.tree.leaves, map(matrices, (state, after[1], wrote[1]))), strict=True):
        np.testing.assert_array_equal(old, new)
        assert (np.asarray(old) != np.asarray(changed)).any()
    np.testing.assert_allclose(after[0][:, :4], wrote[0][:, :4], atol=EXACT)  # before its first write it reads the same


def test_armt_overwrites_what_it_wrote_under_the_same_key():
    """The delta rule: with beta = 1, a second value under a key takes the place of the first."""
    config, key = dataclasses.replace(ARMT.tiny[0], memory=1), jax.random.key(0)
    associative = ARMT.wrap_layer(config, DIMS, key, Residual(key))
    assert associative.beta.b is not None
    associative.beta.b[...] = jnp.full(1, 50.0)
    associative.beta.w[...] = jnp.zeros((8, 1))
    associative.k.w[...] = jnp.zeros((8, 3)).at[0].set(jnp.array([1.0, -2.0, 3.0]))  # keys depend on the first feature alone
    first, second = (jnp.asarray(np.r_[1.0, v])[None, None].astype(jnp.float32) for v in (np.arange(7), -np.arange(7)))
    state = associative.init_state(1)
    a_z = state.a_BFD, state.z_BF
    for m in (first, second):
        a_z = associative.write(a_z, m)
    read, _ = recall(*a_z, dpfp(associative.k(first), 2))
    np.testing.assert_allclose(read, associative.v(second), rtol=1e-4)  # but for e
    assert np.abs(associative.v(second) - associative.v(first)).max() > 0.1


@pytest.mark.parametrize("cls", [RMT, ARMT])
def test_what_cannot_be_is_a_clear_error(cls):
    with pytest.raises(UserError, match="memory must be at least 1"):
        dataclasses.replace(cls.tiny[0], memory=0)
    with pytest.raises(UserError, match="unknown inner .forget"):
        dataclasses.replace(RMT.tiny[0], inner="forget")
