"""Phonebook: names with ten-digit numbers, two lines repeated as hints, then the query (Jelassi et al. 2024, 2402.01032).

The names come from `memtx.tasks.words`. Exact match requires the whole number.
"""

from __future__ import annotations

import dataclasses

from memtx.tasks.base import TextTask, check, tenth
from memtx.tasks.words import first_names, last_names


class Phonebook(TextTask):
    """A list of names and numbers, and a query for one number."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        entries: int = 20  # lines of the book

        def __post_init__(self):
            most = len(first_names) * len(last_names)
            check(3 <= self.entries <= most, f"entries must be from 3 to {most}")

    @property
    def length(self) -> int:
        longest = max(map(len, first_names)) + max(map(len, last_names)) + len(" : 0123456789\n")
        return (self.config.entries + 3) * longest

    def example(self, rng):
        entries = self.config.entries
        people = rng.choice(len(first_names) * len(last_names), entries, replace=False)
        names = [f"{first_names[p % len(first_names)]} {last_names[p // len(first_names)]}" for p in people]
        numbers = ["".join(map(str, rng.integers(10, size=10))) for _ in names]
        lines = [f"{name}: {number}" for name, number in zip(names, numbers, strict=True)]
        *hints, asked = rng.choice(entries, 3, replace=False)
        prompt = "\n".join([*lines, "", *(lines[h] for h in hints), f"{names[asked]}:"])
        return self.build_example(prompt, f" {numbers[asked]}", entries=entries, depth=tenth(asked / entries))
