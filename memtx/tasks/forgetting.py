"""MQAR with updates: some keys are written twice, and the last value counts (zoology's forgetting MQAR).

    k1 v1 ... kN vN  k3 v'3 k1 v'1  . . k2 . k3 ...     the label at k3 is v'3

U of the N keys are written a second time. Delta and gated rules solve this task. Additive memories do not. Here v' always
differs from the key's old value. By mistake the reference compares it with the old value of another key.
Legend: as in mqar.py, U updates.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from memtx.errors import check_known
from memtx.tasks.base import Example, Numbered, check
from memtx.tasks.mqar import FILLERS, ask, fill


class Forgetting(Numbered):
    """MQAR in which some keys get a new value."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        vocabulary: int = 8192
        length: int = 64
        pairs: int = 8
        updates: int = 4
        power: float = 0.01
        filler: str = "zero"  # zero | zoology | safe

        def __post_init__(self):
            check_known(self.filler, FILLERS, "filler")
            check(0 <= self.updates <= self.pairs and self.pairs >= 1, "updates must be from 0 to pairs")
            least = 2 * (self.pairs + self.updates) + 2 * self.pairs
            check(least <= self.length, f"length must be at least 2 (pairs + updates) + 2 pairs = {least}")
            check(self.vocabulary > 2 * self.pairs + 1, f"vocabulary={self.vocabulary} must be above 2 pairs + 1")

    def example(self, rng):
        c = self.config
        half, values = c.vocabulary // 2, c.vocabulary - c.vocabulary // 2
        key_N = 1 + rng.choice(half - 1, c.pairs, replace=False)
        value_N = rng.choice(values, c.pairs, replace=False)
        updated_U = rng.choice(c.pairs, c.updates, replace=False)
        new_U = (value_N[updated_U] + rng.integers(1, values, c.updates)) % values  # any value but the old one
        key_C = np.concatenate([key_N, key_N[updated_U]])
        value_C = half + np.concatenate([value_N, new_U])
        last_N = np.arange(c.pairs)  # the index in the context of each key's last pair
        last_N[updated_U] = c.pairs + np.arange(c.updates)
        context = np.stack([key_C, value_C], 1).ravel()
        token_L, label_L, distance_A = ask(rng, context, key_N[:, None], value_C[last_N], 2 * last_N + 1, c.length, c.power)
        asked_A = np.flatnonzero(label_L >= 0)
        updated_A = np.isin(token_L[asked_A], key_N[updated_U])
        fill(rng, token_L, c.vocabulary, key_N, c.filler)
        return Example(token_L, label_L, {"updated": np.where(updated_A, "yes", "no"), "distance": distance_A})
