"""C9 and C10: many devices compute the same as one without communication, and the declared bytes are real."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import memtx.memory
from memtx.contract.case import BATCH, at, distance, gathers, shard
from memtx.core import state_bytes
from memtx.memory import MEMORIES

CARDS = Path(memtx.memory.__file__).parent / "cards"


@pytest.mark.skipif("config.getoption('devices') == 1", reason="needs --devices=8")
def test_c9_many_devices_are_one(case):
    x, state, seg = case.x(1, 7), case.warm(), at([7, 4, 6, 5], 7, reset_B=[False, True, False, False])
    sharded = case.call(x, state, seg)
    # By NumPy, since the type of a JAX array keeps its mesh.
    one = partial(jax.tree.map, lambda a: jax.device_put(np.asarray(a), jax.devices()[0]))
    assert distance(sharded, case.jitted(*map(one, (case.params, x, state, seg)))) <= 1e-5

    def collectives(f, *args):
        return gathers(jax.jit(f).lower(*args).compile().as_text())

    placed = shard(x), case.warm(), shard(seg)
    assert collectives(case.apply, case.params, *placed) == []
    ring, index, new = shard((jnp.zeros((BATCH, 64, 8)), jnp.ones((BATCH, 3), int), jnp.ones((BATCH, 3, 8))))
    assert collectives(lambda a, i, n: a.at[jnp.arange(BATCH)[:, None], i].set(n), ring, index, new)  # control


def card(name: str) -> dict:
    """Return the card of a mechanism."""
    return yaml.safe_load((CARDS / f"{name}.yaml").read_text())


def test_c10_declared_bytes_are_real(case):
    declared = state_bytes(case.layer, BATCH)
    assert declared == sum(leaf.nbytes for leaf in jax.tree.leaves(case.warm()))
    if case.name in MEMORIES:  # the card has the size of one stream as a formula
        sizes = dataclasses.asdict(case.config) | dataclasses.asdict(case.dims)
        assert declared == BATCH * eval(card(case.name)["state"]["bytes"], {"__builtins__": {}}, sizes)
