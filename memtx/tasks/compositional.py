"""MQAR with keys of two parts: a grid of pairs (k1, k2), each with a value (zoology's compositional MQAR).

    a1 b1 v11  a1 b2 v12  a2 b1 v21  a2 b2 v22  . . . a2 b1 . ...     the label on b1, after a2, is v21

First parts, second parts and values each have a third of the vocabulary. The N pairs form a square grid in random order, so
neither part alone determines the value.  Legend: as in mqar.py, G = sqrt(N).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from memtx.errors import check_known
from memtx.tasks.base import Example, Numbered, check
from memtx.tasks.mqar import FILLERS, ask, fill


class Compositional(Numbered):
    """MQAR whose keys have two tokens."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        vocabulary: int = 8192
        length: int = 64
        pairs: int = 4  # a square number
        power: float = 0.01
        filler: str = "zero"  # zero | zoology | safe

        def __post_init__(self):
            check_known(self.filler, FILLERS, "filler")
            check(self.pairs >= 1 and math.isqrt(self.pairs) ** 2 == self.pairs, f"pairs={self.pairs} is not a square number")
            check(6 * self.pairs <= self.length, "length must be at least 6 pairs")
            check(self.vocabulary // 3 > self.pairs, f"vocabulary={self.vocabulary} must be at least 3 (pairs + 1)")

    def example(self, rng):
        c = self.config
        third, grid = c.vocabulary // 3, math.isqrt(c.pairs)
        first_G = 1 + rng.choice(third - 1, grid, replace=False)
        second_G = third + rng.choice(third, grid, replace=False)
        value_N = 2 * third + rng.choice(third, c.pairs, replace=False)
        order_N = rng.permutation(c.pairs)
        key_NW = np.stack([first_G[order_N // grid], second_G[order_N % grid]], 1)
        context_C = np.concatenate([key_NW, value_N[:, None]], 1).ravel()
        written_N = 3 * np.arange(c.pairs) + 2
        token_L, label_L, distance_A = ask(rng, context_C, key_NW, value_N, written_N, c.length, c.power)
        fill(rng, token_L, c.vocabulary, key_NW.ravel(), c.filler)
        return Example(token_L, label_L, {"pairs": c.pairs, "distance": distance_A})
