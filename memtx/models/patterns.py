"""What stands in a block, as a config writes it: `branch[/branch...]`, one after the other, each around a residual.

A branch is one mechanism, or several side by side: "window+engram" adds what they give, "window*infini" mixes it by a gate.
"mlp" names the feed-forward network; an entry of one branch without it has "/mlp" after it. "^window" is a reader: queries of
its own, put to the memory that the nearest block before it with a window wrote.

    stacks = ((("window",), 3), (("window/product_key", "window+gated_deltanet"), 2))
    "window/lstm/mlp" has three branches; in "window+mlp" attention and MLP stand side by side
    stacks = ((("window",), 3), (("memorizing",), 1), (("window+^memorizing",), 2))      one bank, read by three layers
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memtx.errors import UserError

MLP, READER = "mlp", "^"


@dataclass(frozen=True)
class Branch:
    """Mechanisms side by side, whether a gate mixes them, and which of them (by index) read what an earlier layer wrote."""

    names: tuple[str, ...]
    gated: bool = False
    readers: tuple[int, ...] = ()

    @property
    def read(self) -> list[str]:
        return [self.names[i] for i in self.readers]

    @property
    def written(self) -> list[str]:
        return [name for i, name in enumerate(self.names) if i not in self.readers]


def parse(entry: str) -> tuple[Branch, ...]:
    """The branches of a pattern's entry, in order."""
    branches = tuple(_branch(text, entry) for text in entry.split("/"))
    alone = len(branches) == 1 and MLP not in branches[0].names
    return (*branches, Branch((MLP,))) if alone else branches


def _branch(text: str, entry: str) -> Branch:
    gated = "*" in text
    marked = text.split("*" if gated else "+")
    names = tuple(name.removeprefix(READER) for name in marked)
    if any(not name.isidentifier() for name in names):
        raise UserError(
            f"cannot read {entry!r} in model.stacks: branches divided by /, each name[+name] or name[*name], ^name if it reads"
        )
    return Branch(names, gated, tuple(i for i, name in enumerate(marked) if name.startswith(READER)))


def layers(stacks: Iterable) -> list[str]:
    """The entries of all layers in order."""
    return [entry for pattern, groups in stacks for _ in range(groups) for entry in pattern]


def names(stacks: Iterable, *others: str) -> list[str]:
    """Every mechanism that stacks name, each once, in order, and then those of `others` that are not empty."""
    named = [name for pattern, _ in stacks for entry in pattern for branch in parse(entry) for name in branch.names]
    return [name for name in dict.fromkeys([*named, *others]) if name not in ("", MLP)]


Place = tuple[int, int]  # of a block: its stack, its entry in the pattern


def readings(stacks: Iterable) -> list[tuple[str, Place, Place]]:
    """Each reader's mechanism, the block that wrote what it reads, and the reader's.

    That is the nearest block before it, in its own group or else in the last group of an earlier stack.
    UserError if there is none, or if the groups of one pattern would read from different stacks.
    """
    found, last = [], {}
    for s, (pattern, groups) in enumerate(stacks):
        blocks = [parse(entry) for entry in pattern]
        written = [{name for branch in block for name in branch.written} for block in blocks]
        for p, block in enumerate(blocks):
            for name in (name for branch in block for name in branch.read):
                if name not in last:
                    raise UserError(f"{READER}{name} reads what an earlier layer wrote, and no {name} stands before it")
                if last[name][0] < s and groups > 1 and name in set().union(*written):
                    away = f"{READER}{name} would read from another stack in its first group than in later ones"
                    raise UserError(f"{away}: put the {name} of its pattern before it, or write the groups out")
                found.append((name, last[name], (s, p)))
            last |= dict.fromkeys(written[p], (s, p))
    return found
