"""Patterns: the notation for the branches of a block in a config, `branch[/branch...]`.

The branches run in sequence, each with a residual connection. A branch is one mechanism, or several side by side:
"window+engram" adds their outputs, and "window*infini" mixes them by a gate. "mlp" is the feed-forward network. If an entry has
a single branch without "mlp", "/mlp" is appended. "^window" is a reader: it has its own queries, and reads the memory that
the nearest earlier block with a window wrote.

    stacks = ((("window",), 3), (("window/product_key", "window+gated_deltanet"), 2))
    "window/lstm/mlp" has three branches; in "window+mlp" attention and MLP are side by side
    stacks = ((("window",), 3), (("memorizing",), 1), (("window+^memorizing",), 2))      one bank, read by three layers
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memtx.errors import UserError

MLP, READER = "mlp", "^"


@dataclass(frozen=True)
class Branch:
    """Mechanisms side by side, whether a gate mixes them, and the indices of those that are readers."""

    names: tuple[str, ...]
    gated: bool = False
    readers: tuple[int, ...] = ()

    @property
    def read(self) -> list[str]:
        """Return the mechanisms that read the memory of an earlier layer."""
        return [self.names[i] for i in self.readers]

    @property
    def written(self) -> list[str]:
        """Return the mechanisms that write their own memory."""
        return [name for i, name in enumerate(self.names) if i not in self.readers]


def parse(entry: str) -> tuple[Branch, ...]:
    """Split an entry of a pattern into its branches. Raises UserError if it cannot be parsed."""
    branches = tuple(_branch(text, entry) for text in entry.split("/"))
    alone = len(branches) == 1 and MLP not in branches[0].names
    return (*branches, Branch((MLP,))) if alone else branches


def _branch(text: str, entry: str) -> Branch:
    gated = "*" in text
    marked = text.split("*" if gated else "+")
    names = tuple(name.removeprefix(READER) for name in marked)
    if any(not name.isidentifier() for name in names):
        raise UserError(
            f"cannot parse {entry!r} in model.stacks; separate branches by /, write each as name[+name] or name[*name], and a "
            "reader as ^name"
        )
    return Branch(names, gated, tuple(i for i, name in enumerate(marked) if name.startswith(READER)))


def layers(stacks: Iterable) -> list[str]:
    """Return the entries of all layers in order."""
    return [entry for pattern, groups in stacks for _ in range(groups) for entry in pattern]


def names(stacks: Iterable, *others: str) -> list[str]:
    """Return all mechanisms of the stacks, each once and in order, and then those of `others` that are not empty."""
    named = [name for pattern, _ in stacks for entry in pattern for branch in parse(entry) for name in branch.names]
    return [name for name in dict.fromkeys([*named, *others]) if name not in ("", MLP)]


BlockIndex = tuple[int, int]  # a block's stack, and its entry in the pattern


def readings(stacks: Iterable) -> list[tuple[str, BlockIndex, BlockIndex]]:
    """Return each reader's mechanism with the blocks that write and read it: (name, writer, reader).

    The writer is the nearest earlier block with that mechanism, in the same group or in the last group of an earlier stack.
    Raises UserError if there is none, or if the groups of one pattern would read from different stacks.
    """
    found, last = [], {}
    for s, (pattern, groups) in enumerate(stacks):
        blocks = [parse(entry) for entry in pattern]
        written = [{name for branch in block for name in branch.written} for block in blocks]
        for p, block in enumerate(blocks):
            for name in (name for branch in block for name in branch.read):
                if name not in last:
                    raise UserError(f"{READER}{name} needs an earlier layer with {name} in model.stacks")
                if last[name][0] < s and groups > 1 and name in set().union(*written):
                    raise UserError(
                        f"the first group of {READER}{name} would read from a different stack than later groups; "
                        f"put {name} before it in the pattern, or write each group as a stack"
                    )
                found.append((name, last[name], (s, p)))
            last |= dict.fromkeys(written[p], (s, p))
    return found
