"""Combinators of runs. A run is a dict of overrides, such as `{"seed": 1, "optim.lr": 3e-4}`.

A part is either an iterable of runs, or a mapping from keys to lists of values. `{"seed": [0, 1, 2]}` gives three runs. In a
product, `{"seed": [0, 1], "optim.lr": [1e-3, 3e-3]}` gives four.
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
    """Yield every combination of the parts. The last part varies fastest."""
    return (_merged(runs) for runs in itertools.product(*_columns(parts)))


def zip_(*parts: Part) -> Iterator[Overrides]:
    """Combine the first entries of all parts, then the second, and so on. Raises UserError if their numbers differ."""
    columns = [list(column) for column in _columns(parts)]
    if len({len(column) for column in columns}) > 1:
        raise UserError(f"zip_ was given {', '.join(str(len(column)) for column in columns)} values; the numbers must be equal")
    return (_merged(runs) for runs in zip(*columns, strict=True))


def chain(*parts: Part) -> Iterator[Overrides]:
    """Yield the runs of the first part, then those of the second, and so on."""
    return itertools.chain.from_iterable(product(part) for part in parts)


def sample(count: int, *parts: Part, seed: int = 0) -> Iterator[Overrides]:
    """Draw `count` different runs of the product. The seed determines them. Raises UserError if the product has fewer runs."""
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
                    raise UserError(f"{key} must be a list of values in a sweep, not {values!r}")
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
