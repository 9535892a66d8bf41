"""What stands in a block, as a config writes it: `branch[/branch...]`, one after the other, each around a residual.

A branch is one mechanism, or several side by side: "window+engram" adds what they give, "window*infini" mixes it by a gate.
"mlp" names the feed-forward network; an entry of one branch without it has "/mlp" after it.

    stacks = ((("window",), 3), (("window/product_key", "window+gated_deltanet"), 2))
    "window/lstm/mlp" has three branches; in "window+mlp" attention and MLP stand side by side
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memtx.errors import UserError

MLP = "mlp"


@dataclass(frozen=True)
class Branch:
    """Mechanisms side by side, and whether a gate mixes them."""

    names: tuple[str, ...]
    gated: bool = False


def parse(entry: str) -> tuple[Branch, ...]:
    """The branches of a pattern's entry, in order."""
    branches = tuple(_branch(text, entry) for text in entry.split("/"))
    alone = len(branches) == 1 and MLP not in branches[0].names
    return (*branches, Branch((MLP,))) if alone else branches


def _branch(text: str, entry: str) -> Branch:
    gated = "*" in text
    names = tuple(text.split("*" if gated else "+"))
    if any(not name.isidentifier() for name in names):
        raise UserError(f"cannot read {entry!r} in model.stacks: branches divided by /, each name[+name] or name[*name]")
    return Branch(names, gated)


def layers(stacks: Iterable) -> list[str]:
    """The entries of all layers in order."""
    return [entry for pattern, groups in stacks for _ in range(groups) for entry in pattern]


def names(stacks: Iterable, *others: str) -> list[str]:
    """Every mechanism that stacks name, each once, in order, and then those of `others` that are not empty."""
    named = [name for pattern, _ in stacks for entry in pattern for branch in parse(entry) for name in branch.names]
    return [name for name in dict.fromkeys([*named, *others]) if name not in ("", MLP)]
