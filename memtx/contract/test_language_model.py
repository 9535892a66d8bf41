"""Some checks of the contract again, through a whole language model."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtx.contract.case import BATCH, DIMS, EXACT, MOVED, distance, gathers, mesh, shard
from memtx.core import batch_axes, segment
from memtx.memory import MEMORIES
from memtx.models.lm import LM


def language_model(case, monkeypatch, **changes) -> LM:
    """Return a model with two groups of the case's pattern."""
    monkeypatch.setitem(MEMORIES, case.name, case.cls)
    (pattern, _), *_ = case.model.stacks
    return LM(dataclasses.replace(case.model, stacks=((pattern, 2),), **changes))


@pytest.mark.thorough
def test_language_model_goes_on_and_begins_anew(case, monkeypatch):
    lm = language_model(case, monkeypatch)
    call = jax.jit(lm.__call__)
    params = shard(lm.init(jax.random.key(0)), -1)
    token = np.random.default_rng(0).integers(0, DIMS.vocab_size, (BATCH, 16))

    def run(token, state, cuts, segs=None):
        outs, start = [], 0
        for i, time in enumerate(cuts):
            logits, state = call(params, shard(token[:, start : start + time]), state, segs and segs[i])
            outs.append(logits)
            start += time
        return jnp.concatenate(outs, 1), state

    fresh = shard(lm.init_state(BATCH), batch_axes(lm.init_state))
    whole = run(token, fresh, [16])
    assert (distance(run(token, fresh, [4] * 4), whole) <= EXACT) == case.causal
    row = np.arange(BATCH) == 1
    position = np.where(row, 0, 16)[:, None] + np.arange(16)
    again, _ = run(token, whole[1], [16], [shard(segment(position, reset_B=row))])
    assert distance(again[1], whole[0][1]) <= EXACT
    if case.keeps_x:
        assert all(distance(again[i], whole[0][i]) > MOVED for i in (0, 2, 3))  # control: rows that were not reset remember
    if mesh():
        assert gathers(call.lower(params, shard(token[:, :4]), fresh).compile().as_text()) == []


@pytest.mark.thorough
def test_language_model_unrolled_is_the_one_scanned_and_rematerialised(case, monkeypatch):
    """With the same key for dropout, each way to run the stack gives the same values and gradients."""
    token = shard(np.random.default_rng(0).integers(0, DIMS.vocab_size, (BATCH, 4)))
    lm = language_model(case, monkeypatch)
    params, state = shard(lm.init(jax.random.key(0)), -1), shard(lm.init_state(BATCH), batch_axes(lm.init_state))

    def gradient(**changes):
        lm = language_model(case, monkeypatch, dropout=0.5, **changes)

        def loss(params, key):
            logits, _ = lm(params, token, state, key=key)
            return jax.nn.logsumexp(logits, -1).mean()

        return jax.jit(jax.value_and_grad(loss))

    unrolled, rematerialised = gradient(scan=False), gradient(remat=True)
    expected = unrolled(params, jax.random.key(1))
    assert distance(rematerialised(params, jax.random.key(1)), expected) <= EXACT
    assert distance(unrolled(params, jax.random.key(2)), expected) > MOVED  # control: the key is used
