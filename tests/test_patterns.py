"""What stands in a block, by config: mechanisms side by side, in the MLP's place, around the body and over the logits."""

from functools import partial

import jax
import numpy as np
import pytest

from memtx import patterns
from memtx.config import configure, get_config
from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.memory.base import Dims, segment
from memtx.models.block import Branch
from memtx.models.lm import build
from memtx.patterns import Side

SIZES = {"width": 16, "num_heads": 2, "ff_dim": 32, "vocab_size": 11}
TOKEN = np.random.default_rng(0).integers(0, 11, (2, 8))


def logits(entry: str, change=lambda params: params):
    lm = build(get_config(model={"stacks": (((entry,), 1),), **SIZES}))
    params = change(lm.init(jax.random.key(0)))
    return params, lm(params, TOKEN, lm.init_state(2))[0]


def test_an_entry_names_both_sides_of_a_block():
    assert patterns.parse("window") == (Side(("window",)), None)
    assert patterns.parse("window+lstm") == (Side(("window", "lstm")), None)
    assert patterns.parse("window*lstm/gru") == (Side(("window", "lstm"), gated=True), Side(("gru",)))
    assert patterns.names([(("window+lstm", "window/gru"), 2)], "", "full") == ["window", "lstm", "gru", "full"]


@pytest.mark.parametrize("entry", ["", "window/", "window+", "window+lstm*gru", "window/lstm/gru"])
def test_what_cannot_be_read_is_one_line(entry):
    with pytest.raises(UserError, match="cannot read"):
        patterns.parse(entry)


def test_memories_side_by_side_are_added():
    def silence(params, *names):
        branch = params["body"]["bodies"][0]["layers"][0]["memory"]
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
    mean, total = (branch(x, branch.init_state(2), seg)[0] for branch in (gated, added))
    np.testing.assert_allclose(mean, total / 2, atol=1e-6)
    assert np.abs(total).max() > 1e-2  # control


def test_a_gate_chooses():
    def gate(to: float):
        def change(params):
            branch = params["body"]["bodies"][0]["layers"][0]["memory"]
            branch["gate"]["w"] = branch["gate"]["w"] + np.array([to, -to])
            return params

        return change

    params, mean = logits("window*lstm")
    assert (params["body"]["bodies"][0]["layers"][0]["memory"]["gate"]["w"] == 0).all()
    assert np.abs(mean - logits("window*lstm", gate(3.0))[1]).max() > 1e-3


def test_a_memory_in_place_of_the_mlp_has_its_state_there():
    lm = build(get_config(model={"stacks": ((("window/lstm",), 1),), **SIZES}))
    params = lm.init(jax.random.key(0))
    assert "up" not in params["body"]["bodies"][0]["layers"][0]["mlp"]
    _, state = lm(params, TOKEN, lm.init_state(2))
    (_, (cell,)) = state.body[0][0]
    assert np.abs(cell.h_BE).max() > 1e-3


@pytest.mark.parametrize(
    ("model", "line"),
    [
        ({"stacks": ((("lstm/window",), 1),)}, "window cannot stand in place of the MLP"),
        ({"body": "window"}, "model.body=window cannot be"),
        ({"head": "lstm"}, "model.head=lstm cannot be"),
    ],
)
def test_a_memory_at_a_site_where_it_cannot_be_is_named(model, line):
    with pytest.raises(UserError, match=line):
        build(get_config(model={**SIZES, **model}))


def test_memories_of_a_body_or_head_do_not_stand_in_stacks(monkeypatch):
    class Around(MEMORIES["lstm"]):
        site = "body"

    monkeypatch.setitem(MEMORIES, "around", Around)
    with pytest.raises(UserError, match="around cannot stand in model.stacks; set model.body=around"):
        build(get_config(model={**SIZES, "stacks": ((("around",), 1),)}))
