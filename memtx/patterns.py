"""What stands in a block, as a config writes it: `memory` or `memory/feed-forward`.

Each side is one mechanism, or several side by side: "window+engram" adds what they give, "window*infini" mixes it by a gate.
Without a feed-forward side the block has its MLP.

    stacks = ((("window",), 3), (("window/product_key", "window+gated_deltanet"), 2))
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from memtx.errors import UserError


@dataclass(frozen=True)
class Side:
    """Mechanisms side by side, and whether a gate mixes them."""

    names: tuple[str, ...]
    gated: bool = False


def parse(entry: str) -> tuple[Side, Side | None]:
    """The memory side and the feed-forward side (None: the MLP) of a pattern's entry."""
    memory, slash, feed_forward = entry.partition("/")
    return _side(memory, entry), _side(feed_forward, entry) if slash else None


def _side(text: str, entry: str) -> Side:
    gated = "*" in text
    names = tuple(text.split("*" if gated else "+"))
    if any(not name.isidentifier() for name in names):
        raise UserError(f"cannot read {entry!r} in model.stacks: name[+name] or name[*name], then /name in place of the MLP")
    return Side(names, gated)


def names(stacks: Iterable, *others: str) -> list[str]:
    """Every mechanism that stacks name, each once, in order, and then those of `others` that are not empty."""
    sides = [side for pattern, _ in stacks for entry in pattern for side in parse(entry) if side]
    return list(dict.fromkeys([name for side in sides for name in side.names] + [name for name in others if name]))
