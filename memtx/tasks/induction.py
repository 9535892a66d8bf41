"""Induction heads: which token followed the special token at its first occurrence? (Gu and Dao 2023, 2312.00752)

    x x x S y x x ... x S     the label on the last S is y

The special token S occurs once at a random position and once at the end. The other tokens are random. The paper trains at
length 256 and tests at lengths from 64 to a million (set `eval.task.length`).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from memtx.data.streams import NOTHING
from memtx.data.tokenizers import Words
from memtx.tasks.base import Example, Task, check, octave


class Induction(Task):
    """Random tokens with two occurrences of a special token."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        vocabulary: int = 16  # without S
        length: int = 256

        def __post_init__(self):
            check(self.vocabulary >= 1 and self.length >= 3, "vocabulary must be at least 1 and length at least 3")

    def __init__(self, config: Config):
        super().__init__(config)
        self.length = config.length
        self.tokenizer = Words("induction", [*map(str, range(config.vocabulary)), "S"])

    def example(self, rng):
        special = self.config.vocabulary
        token_L = rng.integers(special, size=self.length).astype(np.int32)
        at = int(rng.integers(self.length - 2))
        token_L[[at, -1]] = special
        label_L = np.full(self.length, NOTHING, np.int32)
        label_L[-1] = token_L[at + 1]
        return Example(token_L, label_L, {"length": self.length, "distance": int(octave(self.length - 1 - at))})
