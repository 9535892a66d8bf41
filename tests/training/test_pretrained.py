"""Training that begins with a pretrained model, of all parameters or of a memory's alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.errors import UserError
from memtx.pretrained import load as pretrained
from memtx.pretrained.names import flat
from memtx.runs.configure import build, configure, get_config, load_config
from memtx.runs.evaluate import evaluate_config
from memtx.runs.load import load
from memtx.runs.presets import on_pretrained
from memtx.runs.train import train
from memtx.training.optim import make_optimizer
from tests.runs import tiny

SIZES = {"width": 16, "num_heads": 2, "ff_dim": 32, "vocab_size": 264, "embed_scale": 1.0}
SMALL = {"neighbours": 4, "memory": 32, "segment": 16}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    lm, folder = build(get_config(model={"stacks": ((("full",), 2),), **SIZES})), tmp_path_factory.mktemp("model") / "backbone"
    pretrained.export(lm, lm.init(jax.random.key(7)), folder)
    return str(folder)


def config(tmp_path, backbone, memory="memorizing", **groups):
    model, memories, new = on_pretrained(backbone, memory, "1", "window", "16")
    memories["memorizing"] = memories.get("memorizing", {}) | SMALL
    groups = {"optim": {"train": new}, "train": {"steps": 3}, "eval": {"every": 0}} | groups
    return tiny(tmp_path, model=model | {"memory": memories}, **groups)


@pytest.mark.thorough
def test_a_memory_is_trained_alone_and_the_rest_keeps_every_bit(tmp_path, backbone):
    c = config(tmp_path, backbone, memory="infini")
    assert train(c, tmp_path / "run", say=lambda _: None).finished
    lm, params = build(c.model), load(tmp_path / "run").params
    before, after = flat(pretrained.load_params(lm, jax.random.key(0))), flat(params)
    new = pretrained.new_parameters(lm)
    assert [path.rsplit("/", 1)[-1] for path in new] == ["gate"]
    moved = {path for path in before if (before[path] != after[path]).any()}
    assert moved == set(new)
    c = config(tmp_path, backbone, memory="infini", optim={"train": ""})
    whole = train(c, tmp_path / "whole", say=lambda _: None)
    assert whole.finished
    everything = flat(load(tmp_path / "whole").params)
    assert all((before[path] != everything[path]).any() for path in before)  # control


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_what_is_frozen_has_no_optimiser_state(tmp_path, backbone, name):
    c = config(tmp_path, backbone, memory="infini")
    lm = build(c.model)

    def size(regex: str) -> int:
        tx = make_optimizer(dataclasses.replace(c.optim, name=name, train=regex), 10, lm)
        return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(tx.init, lm.abstract_params)))

    assert size("gate$") < 20 < 1000 < size("")
    tx = make_optimizer(dataclasses.replace(c.optim, name=name, train="gate$"), 10, lm)
    params = lm.init(jax.random.key(0))
    updates = jax.jit(lambda params: tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)[0])(params)
    assert {path for path, update in flat(updates).items() if update.any()} <= {p for p in flat(params) if p.endswith("gate")}


def test_what_the_weights_do_not_have_learns_as_much_faster_as_is_said(tmp_path, backbone):
    c = config(tmp_path, backbone, optim={"new_lr": 10.0, "lr": 0.1, "warmup": 0, "weight_decay": 0.0, "clip": 0.0})
    lm = build(dataclasses.replace(c.model, output="classes", classes=2))
    params = lm.init(jax.random.key(0))

    def moves(train: str) -> dict[str, float]:
        tx = make_optimizer(dataclasses.replace(c.optim, train=train), 10, lm)
        updates = jax.jit(lambda params: tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)[0])(params)
        return {path: round(-float(np.asarray(update).mean()), 4) for path, update in flat(updates).items()}

    new = set(pretrained.new_parameters(lm))
    assert {path.rsplit("/", 1)[-1] for path in new} >= {"gate", "w", "b"}  # memory's gate; the head, which the table knows
    assert moves("") == {path: 1.0 if path in new else 0.1 for path in flat(params)}
    assert moves("gate$") == {path: 1.0 if path.endswith("gate") else 0.0 for path in flat(params)}
    for model in (dataclasses.replace(c.model, pretrained=""), pretrained.settings(backbone)):
        with pytest.raises(UserError, match=r"optim.new_lr=10.0 needs new parameters"):
            make_optimizer(c.optim, 10, build(model))


@pytest.mark.thorough
def test_a_config_is_evaluated_as_it_begins(tmp_path, backbone):
    c = config(tmp_path, backbone, optim={"lr": 0.0})
    trained = train(c, tmp_path / "run", say=lambda _: None).evaluation
    health = {name: value for name, value in trained.health.items() if "drift" not in name}  # of a train step
    assert len(health) < len(trained.health)
    trained = dataclasses.replace(trained, health=health)
    assert evaluate_config(c) == trained
    assert evaluate_config(c, split="test") != trained  # control
    assert evaluate_config(dataclasses.replace(c, model=dataclasses.replace(c.model, pretrained=""))) != trained  # control
    with pytest.raises(UserError, match="--task for tasks"):
        evaluate_config(c, examples=3)


def test_a_regex_that_trains_nothing_is_one_line(tmp_path, backbone):
    for regex, line in (
        ("nothing", "no parameter path matches optim.train="),
        ("(", "is not a regular expression"),
    ):
        with pytest.raises(UserError, match=line):
            train(config(tmp_path, backbone, optim={"train": regex}), tmp_path / "run", say=lambda _: None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("memory", ["none", "memorizing", "gated_deltanet", "product_key", "engram", "rmt", "knn_lm"])
def test_the_config_file_puts_a_memory_on_a_backbone(backbone, memory):
    c = load_config(f"configs/pretrained.py:backbone={backbone},memory={memory},layers=1,attention=sink,context=32,data=pycode")
    lm = build(c)
    assert c.model.closed
    assert c.memory.sink.window == 32
    assert (c.optim.train == "") == (not pretrained.new_parameters(lm))
    assert c.model.pretrained == backbone
    named = [name for stack in c.model.stacks for entry in stack[0] for name in [entry]]
    assert memory in "".join(named) + c.model.body + c.model.head + "none"


def test_the_config_file_fine_tunes_on_conversations(backbone):
    c = load_config(f"configs/pretrained.py:backbone={backbone},train=all,data=task:turns")
    assert (c.data.tokenizer, c.data.task.tokenizer) == ("bytes", f"pretrained:{backbone}")
    assert configure(c).optim.train == ""


@pytest.mark.thorough
@pytest.mark.parametrize("attention", [*(pytest.param(name, marks=pytest.mark.thorough) for name in ("own", "window")), "sink"])
def test_a_memory_closed_is_the_attention_of_the_other_layers(backbone, attention):
    token = np.random.default_rng(0).integers(0, 264, (2, 48))

    def logits(memory: str, **settings):
        model, memories, _ = on_pretrained(backbone, memory, "1", attention, "16")
        for name in memories.keys() & {"memorizing"}:
            memories[name] |= SMALL | settings
        lm = build(get_config(model=model, memory=memories))
        return jax.jit(lm.__call__)(pretrained.load_params(lm, jax.random.key(0)), token, lm.init_state(2))[0]

    np.testing.assert_allclose(logits("memorizing"), plain := logits("none"), atol=1e-5)
    assert np.abs(logits("memorizing", gate=0.5) - plain).max() > 1e-3  # control
    if attention == "sink":
        assert np.abs(logits("memorizing", sinks=0) - plain).max() > 1e-3  # control


@pytest.mark.parametrize(
    ("arg", "line"),
    [("layers=2", "has layers 0 to 1"), ("layers=x", "must be numbers"), ("attention=windw", "did you mean window")],
)
def test_mistakes_in_its_arguments_are_named(backbone, arg, line):
    with pytest.raises(UserError, match=line):
        load_config(f"configs/pretrained.py:backbone={backbone},memory=memorizing,{arg}")
