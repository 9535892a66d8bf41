"""Every mechanism has a card with the same fields."""

import re

import jax

from memtx.contract.test_costs import CARDS, card
from memtx.library.entries import holders
from memtx.memory import MEMORIES
from memtx.memory.bank import Bank
from memtx.runs.configure import build, get_config
from memtx.runs.presets import preset
from tests.golden import make

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
    "forgetting": list,
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


def forgetting(name: str) -> list[str]:
    """The methods by which a library can forget a document that this memory has read (see docs/library.md)."""
    cls = MEMORIES[name]
    if not cls.causal or cls.encoded:
        return []
    if cls.site == "body":
        return ["replay"]
    lm = build(get_config(model=preset(name, "micro")), vocab_size=264)
    state = jax.eval_shape(lambda: lm.init_state(1))
    banks = [leaf for leaf in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, Bank)) if isinstance(leaf, Bank)]
    return ["erase"] * bool(holders(state)) + ["replay"] + ["mask"] * bool(banks)


def test_every_memory_has_a_card():
    assert {path.stem for path in CARDS.glob("*.yaml")} == set(MEMORIES)
    for name in MEMORIES:
        fields = card(name)
        assert {key: type(value) for key, value in fields.items()} == FIELDS, name
        assert fields["name"] == name
        assert set(fields["golden"]) == {"source", "files", "tolerance"}, name
        assert {f"{key}.npz" for key, golden in make.GOLDENS.items() if golden.memory == name} == set(fields["golden"]["files"])
        assert fields["state"]["kind"] == MEMORIES[name].kind, name
        assert fields["forgetting"] == forgetting(name), name
        check_parity(fields["parity"])
        assert set(fields["claim"]) == {"paper", "status"}, name
