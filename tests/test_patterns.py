"""The contents of a block, by config: mechanisms side by side, in the MLP's place, around the body and over the logits."""

import re
import zlib
from functools import partial

import jax
import numpy as np
import pytest

from memtx.core import Dims, segment
from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.models import patterns
from memtx.models.block import Branch
from memtx.pretrained.names import flat
from memtx.runs.configure import build, configure, get_config

SIZES = {"width": 16, "num_heads": 2, "ff_dim": 32, "vocab_size": 11}
TOKEN = np.random.default_rng(0).integers(0, 11, (2, 8))


def logits(entry: str, change=lambda params: params):
    lm = build(get_config(model={"stacks": (((entry,), 1),), **SIZES}))
    params = change(lm.init(jax.random.key(0)))
    return params, jax.jit(lm.__call__)(params, TOKEN, lm.init_state(2))[0]


def first_branch(params) -> dict:
    return params["body"]["bodies"][0]["layers"][0]["branches"][0]


def test_an_entry_names_the_branches_of_a_block():
    mlp = patterns.Branch(("mlp",))
    assert patterns.parse("window") == (patterns.Branch(("window",)), mlp)
    assert patterns.parse("window+lstm") == (patterns.Branch(("window", "lstm")), mlp)
    assert patterns.parse("window*lstm/gru") == (patterns.Branch(("window", "lstm"), gated=True), patterns.Branch(("gru",)))
    assert patterns.parse("window/lstm/mlp") == (patterns.Branch(("window",)), patterns.Branch(("lstm",)), mlp)
    assert patterns.parse("window+mlp") == (patterns.Branch(("window", "mlp")),)
    assert patterns.names([(("window+lstm", "window/gru/mlp"), 2)], "", "full") == ["window", "lstm", "gru", "full"]


@pytest.mark.parametrize("entry", ["", "window/", "window+", "window+lstm*gru", "/mlp"])
def test_what_cannot_be_read_is_one_line(entry):
    with pytest.raises(UserError, match="cannot parse"):
        patterns.parse(entry)


def test_memories_side_by_side_are_added():
    def silence(params, *names):
        branch = first_branch(params)
        for path, leaf in list(branch.items()):
            branch[path] = jax.tree.map(lambda a: a * 0, leaf) if path in names else leaf
        return params

    _, both = logits("window+lstm")
    _, without_window = logits("window+lstm", lambda p: silence(p, "attention"))
    _, without_lstm = logits("window+lstm", lambda p: silence(p, "memories"))
    assert all(np.abs(both - other).max() > 1e-3 for other in (without_window, without_lstm))


def test_a_gate_begins_as_the_mean():
    model = configure(get_config(model={"stacks": ((("window*lstm",), 1),), **SIZES})).model
    dims = Dims(width=16, num_heads=2, num_kv_heads=2, head_dim=8)
    makes = [partial(MEMORIES[name], model.memory[name]) for name in ("window", "lstm")]
    gated, added = (Branch(model, dims, makes, gate, jax.random.key(0)) for gate in (True, False))
    x, seg = jax.random.normal(jax.random.key(1), (2, 8, 16)), segment(np.broadcast_to(np.arange(8), (2, 8)))
    mean, total = (jax.jit(lambda x, b=branch: b(x, b.init_state(2), seg)[0])(x) for branch in (gated, added))
    np.testing.assert_allclose(mean, total / 2, atol=1e-6)
    assert np.abs(total).max() > 1e-2  # control


@pytest.mark.thorough
def test_a_gate_chooses():
    def gate(to: float):
        def change(params):
            branch = first_branch(params)
            branch["gate"]["w"] = branch["gate"]["w"] + np.array([to, -to])
            return params

        return change

    params, mean = logits("window*lstm")
    assert (first_branch(params)["gate"]["w"] == 0).all()
    assert np.abs(mean - logits("window*lstm", gate(3.0))[1]).max() > 1e-3


def test_a_memory_in_place_of_the_mlp_has_its_state_there():
    lm = build(get_config(model={"stacks": ((("window/lstm",), 1),), **SIZES}))
    params = lm.init(jax.random.key(0))
    assert len(params["body"]["bodies"][0]["layers"][0]["branches"]) == 2
    _, state = jax.jit(lm.__call__)(params, TOKEN, lm.init_state(2))
    (_, (cell,)) = state.body[0][0]
    assert np.abs(cell.h_BE).max() > 1e-3


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ({"stacks": ((("window*lstm",), 1),), "closed": True}, "with model.closed, use"),
        ({"body": "window"}, "model.body=window is not allowed"),
        ({"head": "lstm"}, "model.head=lstm is not allowed"),
    ],
)
def test_a_memory_at_a_site_where_it_cannot_be_is_named(model, line):
    with pytest.raises(UserError, match=line):
        build(get_config(model={**SIZES, **model}))


def test_memories_of_a_body_or_head_do_not_stand_in_stacks(monkeypatch):
    class Around(MEMORIES["lstm"]):
        site = "body"

    monkeypatch.setitem(MEMORIES, "around", Around)
    with pytest.raises(UserError, match="around cannot be in model.stacks; set model.body=around"):
        build(get_config(model={**SIZES, "stacks": ((("around",), 1),)}))


@pytest.mark.parametrize(
    ("entry", "plain"),
    [
        ("full+lstm", "full"),
        pytest.param("full/lstm/mlp", "full", marks=pytest.mark.thorough),
        pytest.param("full+window", "full", marks=pytest.mark.thorough),
        pytest.param("full/mlp+lstm", "full/mlp", marks=pytest.mark.thorough),
    ],
)
def test_what_is_added_to_a_backbone_begins_as_nothing_and_learns(entry, plain):
    def read(entry, closed):
        lm = build(get_config(model={"stacks": (((entry,), 2),), "closed": closed, **SIZES}))
        params, call = same(lm.abstract_params), jax.jit(lm.__call__)
        return lm, call, params, call(params, TOKEN, lm.init_state(2))[0]

    lm, call, params, with_memory = read(entry, closed=True)
    *_, plain_params, without = read(plain, closed=True)
    np.testing.assert_allclose(with_memory, without, rtol=0, atol=2e-6)  # two programs, which round apart
    known = {re.sub(r"branches/\d", "", path) for path in flat(plain_params)}
    own = {path for path in flat(params) if "memories" in path and re.sub(r"branches/\d", "", path) not in known}
    others = jax.tree_util.tree_map_with_path(lambda path, a: 2 * a if name(path) in own else a, params)
    again = call(others, TOKEN, lm.init_state(2))[0]  # one program, so exactly nothing is added
    np.testing.assert_array_equal(again, with_memory)
    assert np.abs(with_memory - read(entry, closed=False)[-1]).max() > 1e-3  # control
    grads = jax.jit(jax.grad(lambda p: jax.nn.logsumexp(lm(p, TOKEN, lm.init_state(2))[0], -1).sum()))(params)
    gains = {path: leaf for path, leaf in flat(grads).items() if path.endswith("gain")}
    assert gains
    assert all(np.abs(leaf).min() > 0 for leaf in gains.values())


def name(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def same(shapes):
    """Parameters that depend on their place, but not on which branch of a block that is."""

    def leaf(path, shape):
        place = re.sub(r"branches/\d", "", name(path))
        if place.endswith(("gain", "scale")):
            return np.full(shape.shape, float(place.endswith("scale")), np.float32)
        return np.random.default_rng(zlib.crc32(place.encode())).normal(0, 0.2, shape.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)
