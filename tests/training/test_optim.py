"""Optimisers learn, and apply the settings that mechanisms attach to their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from memtx.config import Optim
from memtx.evaluation.losses import cross_entropy
from memtx.memory import MEMORIES, Window
from memtx.runs.configure import build, configure
from memtx.training.optim import make_optimizer, make_schedule

MODEL = {"stacks": [[["window"], 2]], "width": 16, "num_heads": 2, "ff_dim": 32, "vocab_size": 11, "bias": True}


def make(model=None):
    return build(configure({"model": MODEL | (model or {}), "memory": {"window": {"window": 8}}}))


@pytest.mark.parametrize(
    "name", ["adamw", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("adafactor", "lion", "muon"))]
)
def test_every_optimiser_learns_a_small_text(name):
    lm = make()
    tx = make_optimizer(Optim(name=name, lr=0.01 if name != "lion" else 0.003, warmup=1, schedule="constant"), 60, lm)
    params = lm.init(jax.random.key(0))
    tokens = jnp.arange(24).reshape(2, 12) % 11

    @jax.jit
    def step(params, opt_state):
        def loss(params):
            logits, _ = lm(params, tokens[:, :-1], lm.init_state(2))
            return cross_entropy(logits, tokens[:, 1:], jnp.ones((2, 11), bool))[1] / 22

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state, losses = jax.jit(tx.init)(params), []
    for _ in range(60):
        params, opt_state, value = step(params, opt_state)
        losses.append(float(value))
    assert losses[-1] < 0.3 < losses[0]


def test_only_parameters_that_declare_no_decay_keep_still_under_zero_gradients():
    lm = make()
    tx = make_optimizer(Optim(lr=0.1, warmup=0, weight_decay=0.1), 10, lm)
    params = lm.init(jax.random.key(0))
    updates = jax.jit(lambda params: tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)[0])(params)
    labels = jax.tree.leaves(lm.declared("optim", ""))
    assert "no_decay" in labels
    for label, update, param in zip(labels, jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        assert bool(jnp.any(update != 0)) == (label != "no_decay" and bool(jnp.any(param != 0)))


def test_a_declared_learning_rate_multiplies_that_parameter_only(monkeypatch):
    class Eager(Window):
        def __init__(self, config, dims, key):
            super().__init__(config, dims, key)
            self.gate = nnx.Param(jnp.ones(3), lr=5.0)

    monkeypatch.setitem(MEMORIES, "window", Eager)
    lm = make()
    tx = make_optimizer(Optim(lr=0.1, warmup=0, weight_decay=0.0, clip=0.0), 10, lm)
    params = lm.init(jax.random.key(0))
    updates = jax.jit(lambda params: tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)[0])(params)
    factors = jax.tree.leaves(lm.declared("lr", 1.0))
    assert sorted(set(factors)) == [1.0, 5.0]
    for factor, update in zip(factors, jax.tree.leaves(updates), strict=True):
        np.testing.assert_allclose(update, -0.1 * factor, rtol=1e-5)


@pytest.mark.parametrize(("name", "last"), [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)])
def test_schedules_warm_up_and_end_where_they_should(name, last):
    rate = make_schedule(Optim(lr=1.0, schedule=name, warmup=10, final_lr=0.1), 100)
    assert float(rate(0)) == 0.0
    assert float(rate(5)) == pytest.approx(0.5)
    assert float(rate(10)) == pytest.approx(1.0)
    assert float(rate(100)) == pytest.approx(last)
