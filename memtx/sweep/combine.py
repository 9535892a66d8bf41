"""Combinators of runs. A run is a dict of overrides, `{"seed": 1, "optim.lr": 3e-4}`.

A part is either some runs, or a mapping from keys to the values that each takes: `{"seed": [0, 1, 2]}` is three runs, and in a
product `{"seed": [0, 1], "optim.lr": [1e-3, 3e-3]}` is four.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from memtx.errors import UserError

Overrides = dict[str, object]
Part = Mapping[str, Sequence] | Iterable[Overrides]


def product(*parts: Part) -> Iterator[Overrides]:
    """Every combination; the last part varies fastest."""
    return (_merged(runs) for runs in itertools.product(*_columns(parts)))


def zip_(*parts: Part) -> Iterator[Overrides]:
    """The first of each with one another, then the second of each. UserError if they are not equally many."""
    columns = [list(column) for column in _columns(parts)]
    if len({len(column) for column in columns}) > 1:
        raise UserError(f"zip_ was given {', '.join(str(len(column)) for column in columns)} values; they must be equally many")
    return (_merged(runs) for runs in zip(*columns, strict=True))


def chain(*parts: Part) -> Iterator[Overrides]:
    """The runs of one part after those of another."""
    return itertools.chain.from_iterable(product(part) for part in parts)


def sample(count: int, *parts: Part, seed: int = 0) -> Iterator[Overrides]:
    """`count` different runs of the product, at random but the same for a seed. UserError if it has fewer."""
    runs = list(product(*parts))
    if count > len(runs):
        raise UserError(f"sample of {count} runs, but there are only {len(runs)}")
    return iter(random.Random(seed).sample(runs, count))


def _columns(parts: Iterable[Part]) -> Iterator[Iterable[Overrides]]:
    part: Any
    for part in parts:
        if isinstance(part, Mapping):
            for key, values in part.items():
                if isinstance(values, str) or not isinstance(values, Iterable):
                    raise UserError(f"{key} takes a list of values in a sweep, not {values!r}")
                yield [{key: value} for value in values]
        else:
            yield part


def _merged(runs: Iterable[Overrides]) -> Overrides:
    merged: Overrides = {}
    for run in runs:
        if twice := merged.keys() & run.keys():
            raise UserError(f"{min(twice)} is set by two parts of a sweep")
        merged |= run
    return merged
