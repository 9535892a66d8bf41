"""The language model as users hold it: pure functions of parameters, tokens and state."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.config import Model
from memtx.contract.case import distance
from memtx.core import segment
from memtx.memory import MEMORIES
from memtx.models import lm as models
from memtx.models.block import Block
from memtx.models.lm import LM
from memtx.models.settings import complete_model

WINDOW = MEMORIES["window"].tiny[0]
MODEL = Model(
    stacks=((("window",), 2),),
    memory={"window": WINDOW},
    vocab_size=11,
    width=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    ff_dim=16,
)
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 8))


@functools.cache
def jitted(lm):
    return jax.jit(lm.__call__)


def build(**changes) -> tuple[LM, dict]:
    lm = models.build(dataclasses.replace(MODEL, **changes))
    return lm, lm.init(jax.random.key(0))


@pytest.mark.parametrize(
    "position", ["rope", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("alibi", "t5", "learned", "none"))]
)
def test_positions_go_on_from_call_to_call(position):
    lm, params = build(position=position)
    call = jitted(lm)
    whole, end = call(params, TOKENS, lm.init_state(2))
    assert (whole.shape, whole.dtype) == ((2, 8, 11), jnp.float32)
    assert end.position_B.tolist() == [8, 8]
    state, parts = lm.init_state(2), []
    for start in (0, 4):
        logits, state = call(params, TOKENS[:, start : start + 4], state)
        parts.append(logits)
    assert distance(jnp.concatenate(parts, 1), whole) <= 1e-5
    stated, _ = call(params, TOKENS, lm.init_state(2), segment(np.arange(8) + np.zeros((2, 1))))
    assert distance(stated, whole) <= 1e-6
    later, _ = call(params, TOKENS, lm.init_state(2), segment(4 + np.arange(8) + np.zeros((2, 1))))
    assert (distance(later, whole) > 1e-4) == (position == "learned"), "only a table of places tells a later place"
    full, params = build(position=position, stacks=((("full",), 2),))  # a cache with all tokens
    call = jitted(full)
    _, state = call(params, TOKENS[:, :4], full.init_state(2))
    next_, apart = (call(params, TOKENS[:, 4:], state, segment(n + np.arange(4) + np.zeros((2, 1))))[0] for n in (4, 16))
    assert (distance(apart, next_) > 1e-4) == (position != "none"), "control: positions are read, where there are any"


def test_a_ragged_call_leaves_each_row_where_its_tokens_end():
    lm, params = build()
    _, state = jitted(lm)(params, TOKENS, lm.init_state(2), segment(np.arange(8) + np.zeros((2, 1)), [3, 0]))
    assert state.position_B.tolist() == [3, 0]
    reset = segment(np.arange(8) + np.array([[0], [0]]), [5, 2], [True, False])
    _, state = jitted(lm)(params, TOKENS, state, reset)
    assert state.position_B.tolist() == [5, 2]


def test_tied_models_share_the_embedding():
    tied, untied = build()[1], build(tied=False)[1]
    assert set(untied) - set(tied) == {"to_logits"}
    lm, params = build()
    other = params | {"embed": params["embed"].at[3].add(1.0)}
    a, b = (jitted(lm)(p, TOKENS[:, :1] * 0, lm.init_state(2))[0] for p in (params, other))
    assert (a[..., 3] != b[..., 3]).all()  # token 3 was not read, so it is its place in the head that moved
    np.testing.assert_array_equal(np.delete(a, 3, -1), np.delete(b, 3, -1))


@pytest.mark.parametrize(("position", "leaf"), [("learned", "place"), ("t5", "relative_bias")])
def test_learned_positions_get_a_gradient(position, leaf):
    lm, params = build(position=position)
    grads = jax.jit(jax.grad(lambda p: jax.nn.logsumexp(lm(p, TOKENS, lm.init_state(2))[0], -1).sum()))(params)
    used = jnp.abs(grads[leaf]).max(-1) > 0
    assert used.tolist() == [True] * int(used.sum()) + [False] * int((~used).sum())  # the places that were used, from 0
    assert int(used.sum()) == {"place": 8, "relative_bias": WINDOW.window}[leaf]


def test_metadata_labels_every_parameter():
    lm, params = build(norm="layer", bias=True, position="t5")
    declared = lm.declared("optim", "")
    assert jax.tree.structure(declared) == jax.tree.structure(params)
    labels = {jax.tree_util.keystr(path): label for path, label in jax.tree.leaves_with_path(declared)}
    shapes = {jax.tree_util.keystr(path): leaf.ndim for path, leaf in jax.tree.leaves_with_path(params)}
    assert set(labels.values()) == {"", "no_decay"}
    assert {path for path, label in labels.items() if label} == {
        path for path in shapes if path.endswith(("['scale']", "['bias']", "['b']")) or "relative_bias" in path
    }


def test_a_second_call_does_not_compile_again():
    lm, params = build()
    traces = []

    @jax.jit
    def call(params, token, state):
        traces.append(1)
        return lm(params, token, state)

    state = lm.init_state(2)
    for _ in range(3):
        _, state = call(params, TOKENS, state)
    assert len(traces) == 1


def test_layers_of_one_structure_are_traced_once(monkeypatch):
    """Also if they have attributes without a hash, as the list of sizes in Titans."""
    traced, call = [], Block.__call__
    monkeypatch.setattr(Block, "__call__", lambda self, *args, **options: traced.append(self) or call(self, *args, **options))
    stacks = ((("titans_mac",), 2), (("window",), 2), (("titans_mac",), 1))
    memory = {"window": WINDOW, "titans_mac": MEMORIES["titans_mac"].tiny[0]}
    lm = models.build(dataclasses.replace(MODEL, stacks=stacks, memory=memory, scan=False, width=20))  # no other test has it
    jax.eval_shape(lm, lm.abstract_params, TOKENS, jax.eval_shape(lambda: lm.init_state(2)))
    assert len(traced) == 2


def test_shapes_are_known_without_computing():
    lm, params = build()
    assert jax.tree.map(lambda a: (a.shape, a.dtype), lm.abstract_params) == jax.tree.map(lambda a: (a.shape, a.dtype), params)
    assert lm.num_params() == sum(leaf.size for leaf in jax.tree.leaves(params))
    state = jax.eval_shape(lambda: lm.init_state(2))
    logits, after = jax.eval_shape(lm.__call__, lm.abstract_params, TOKENS, state)
    assert logits.shape == (2, 8, 11)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)


def test_without_a_key_dropout_is_off():
    lm, params = build(dropout=0.5)
    plain = jitted(build()[0])(params, TOKENS, lm.init_state(2))
    assert distance(jitted(lm)(params, TOKENS, lm.init_state(2)), plain) == 0
    assert distance(jitted(lm)(params, TOKENS, lm.init_state(2), key=jax.random.key(0)), plain) > 1e-3  # control


def test_activations_in_bfloat16_keep_parameters_states_and_logits_in_float32():
    lm, params = build(dtype="bfloat16")
    exact = jitted(build()[0])(params, TOKENS, lm.init_state(2))[0]
    logits, state = jitted(lm)(params, TOKENS, lm.init_state(2))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, logits))} == {jnp.dtype("float32")}
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    assert 0 < distance(logits, exact) < 0.1


@pytest.mark.thorough
def test_groups_have_parameters_of_their_own_and_patterns_follow_one_another():
    lstm = MEMORIES["lstm"].tiny[0]
    lm, params = build(stacks=((("window", "lstm"), 2), (("lstm",), 1)), memory={"window": WINDOW, "lstm": lstm})
    first, second = params["body"]["bodies"][0]["layers"], params["body"]["bodies"][1]["layers"]
    assert (len(first), len(second)) == (2, 1)
    w = first[1]["branches"][0]["memories"][0]["h"]
    assert w.shape == (2, lstm.hidden, 4 * lstm.hidden)
    assert (w[0] != w[1]).all()
    assert jitted(lm)(params, TOKENS, lm.init_state(2))[0].shape == (2, 8, 11)


@pytest.mark.thorough
def test_a_cache_in_a_body_that_wipes_it_is_cut_to_what_it_is_shown_and_answers_the_same():
    rmt = MEMORIES["rmt"].Config(segment=3, memory=1, remat=False)
    large = {"rmt": rmt, "full": MEMORIES["full"].Config(capacity=64)}
    model = complete_model(dataclasses.replace(MODEL, stacks=((("full",), 2),), body="rmt", memory=large))
    assert model.memory["full"].capacity == 5  # 3 tokens and 2 x 1 of memory
    kept = complete_model(dataclasses.replace(model, memory=large | {"rmt": dataclasses.replace(rmt, inner="keep")}))
    assert kept.memory["full"].capacity == 64

    lm, uncut, less = (
        LM(dataclasses.replace(model, memory=large | {"full": MEMORIES["full"].Config(capacity=n)})) for n in (5, 64, 3)
    )
    params = lm.init(jax.random.key(0))

    def read(lm):
        state, parts = lm.init_state(2), []
        for start, stop in ((0, 4), (4, 8)):  # both calls cross a boundary of segments
            logits, state = jitted(lm)(params, TOKENS[:, start:stop], state)
            parts.append(logits)
        return jnp.concatenate(parts, 1)

    expected = read(uncut)
    assert distance(read(lm), expected) <= 1e-6
    assert distance(read(less), expected) > 1e-3
