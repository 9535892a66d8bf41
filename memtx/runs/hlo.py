"""Facts about a compiled program, read from its HLO text: collectives, with the trip counts of the loops around them.

    %name = f32[8,128]{1,0} all-reduce(%operand), replica_groups=..., metadata={op_name="..."}

A loop whose number of turns is unknown counts once. Both branches of a condition count.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+)[^\n]*->[^\n]*\{\n(.*?)^\}$", re.M | re.S)
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\((.*)$", re.M)
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+)\w*\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_LISTED = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A transfer between devices.

    kind: one of KINDS. bytes: the size of its result on each device. runs: how many times it runs. op: the JAX operation.
    """

    kind: str
    bytes: int
    runs: int
    op: str


def collectives(text: str) -> list[Collective]:
    """Return the collectives of a program, in the order of the text."""
    bodies, entry = {}, ""
    for start, name, body in _COMPUTATION.findall(text):
        bodies[name] = body
        entry = name if start else entry
    return list(_walk(bodies, entry, 1, ()))


def shapes(text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield (dtype, sizes) of each array in a text."""
    for dtype, sizes in _SHAPE.findall(text):
        yield dtype, tuple(int(size) for size in sizes.split(",") if size)


def count_bytes(text: str) -> list[int]:
    """Return the bytes of each array in the text of a type."""
    found = []
    for dtype, sizes in shapes(text):
        bits = BITS.get(dtype) or int(re.sub(r"\D", "", dtype))
        for size in sizes:
            bits *= size
        found.append(bits // 8)
    return found


def _walk(bodies: dict[str, str], name: str, times: int, path: tuple[str, ...]) -> Iterator[Collective]:
    """Yield the collectives of a computation that runs `times` times, and of those it calls."""
    for made, op, rest in _INSTRUCTION.findall(bodies.get(name, "")):
        kind = op.removesuffix("-start")
        if kind in KINDS:
            asynchronous = op.endswith("-start") and kind != "all-reduce"  # it gives (operands, results, ...)
            size = sum(count_bytes(_second(made) if asynchronous else made))
            where = re.search(r'op_name="([^"]*)"', rest)
            yield Collective(kind, size, times, where[1] if where else "")
        called = _CALLED.findall(rest)
        called += [each.strip().lstrip("%") for group in _LISTED.findall(rest) for each in group.split(",")]
        trips = 1
        if op == "while":
            called += re.findall(r"body=%?([\w.\-]+)", rest)
            trips = _trips(rest, bodies)
        for each in called:
            if each in bodies and each not in path:
                yield from _walk(bodies, each, times * trips, (*path, name))


def _trips(rest: str, bodies: dict[str, str]) -> int:
    """Return how often a loop runs: as stated, or else the largest constant with which its condition compares."""
    if known := re.search(r'known_trip_count"?:?\s*\{"?n"?:\s*"?(\d+)', rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", rest)
    limits = re.findall(r"s32\[\][^\n]*? constant\((\d+)\)", bodies.get(condition[1], "")) if condition else []
    return max(map(int, limits), default=1)


def _second(made: str) -> str:
    """Return the second element of the text of a tuple type."""
    depth, parts = 0, [""]
    for character in made[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return parts[1]
