"""C9 and C10: many devices compute what one does without talking; declared bytes are real; every mechanism has a card."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import memtx.memory
from memtx.contract.case import BATCH, at, distance, gathers, place
from memtx.core import state_bytes
from memtx.memory import MEMORIES
from tests.golden import make

CARDS = Path(memtx.memory.__file__).parent / "cards"


@pytest.mark.skipif("config.getoption('devices') == 1", reason="needs --devices=8")
def test_c9_many_devices_are_one(case):
    x, state, seg = case.x(1, 7), case.warm(), at([7, 4, 6, 5], 7, reset_B=[False, True, False, False])
    sharded = case.call(x, state, seg)
    one = partial(jax.tree.map, lambda a: jax.device_put(np.asarray(a), jax.devices()[0]))  # an array's type keeps its mesh
    assert distance(sharded, case.jitted(*map(one, (case.params, x, state, seg)))) <= 1e-5

    def collectives(f, *args):
        return gathers(jax.jit(f).lower(*args).compile().as_text())

    placed = place(x), case.warm(), place(seg)
    assert collectives(case.apply, case.params, *placed) == []
    ring, index, new = place((jnp.zeros((BATCH, 64, 8)), jnp.ones((BATCH, 3), int), jnp.ones((BATCH, 3, 8))))
    assert collectives(lambda a, i, n: a.at[jnp.arange(BATCH)[:, None], i].set(n), ring, index, new)  # control


def card(name: str) -> dict:
    return yaml.safe_load((CARDS / f"{name}.yaml").read_text())


def test_c10_declared_bytes_are_real(case):
    declared = state_bytes(case.layer, BATCH)
    assert declared == sum(leaf.nbytes for leaf in jax.tree.leaves(case.warm()))
    if case.name in MEMORIES:  # the card states the size of one stream as a formula
        sizes = dataclasses.asdict(case.config) | dataclasses.asdict(case.dims)
        assert declared == BATCH * eval(card(case.name)["state"]["bytes"], {"__builtins__": {}}, sizes)


FIELDS = {
    "name": str,
    "paper": str,
    "equations": str,
    "differentiable": str,
    "deviations": list,
    "reference_code": list,
    "parity": dict,
    "golden": dict,
    "state": dict,
    "claim": dict,
    "negative_results": list,
}


PARITY = {"reference": str, "memtx": str, "compared": str, "output": float, "state": float | None, "gradient": float}


def check_parity(parity: dict) -> None:
    """A third-party reference with its version and the greatest errors, or "none" and the reason."""
    if parity["reference"] == "none":
        assert set(parity) == {"reference", "reason"}
        return
    assert set(parity) - {"note"} == set(PARITY)
    assert all(isinstance(parity[key], kind) for key, kind in PARITY.items())
    assert re.search(r"\d", parity["reference"])  # a version, a commit, or the precision
    assert all(0 <= parity[key] < 1e-3 for key in ("output", "gradient"))


def test_every_memory_has_a_card():
    assert {path.stem for path in CARDS.glob("*.yaml")} == set(MEMORIES)
    for name in MEMORIES:
        fields = card(name)
        assert {key: type(value) for key, value in fields.items()} == FIELDS, name
        assert fields["name"] == name
        assert set(fields["golden"]) == {"source", "files", "tolerance"}, name
        assert {f"{key}.npz" for key, golden in make.GOLDENS.items() if golden.memory == name} == set(fields["golden"]["files"])
        assert fields["state"]["kind"] == MEMORIES[name].kind, name
        check_parity(fields["parity"])
        assert set(fields["claim"]) == {"paper", "status"}, name
