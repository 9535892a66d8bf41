"""Associative retrieval: one key and value per segment, then a query for one key (ARMT, Rodkin et al. 2024, 2407.04841).

    [k1 sep v1 eos] [k2 sep v2 eos] ... [kP sep vP eos]  [kt gen vt eos]     each bracket is one segment

Keys and values are digits in base 16. Keys are distinct (little-endian digits of a permutation of 16^key_size). With `rewrite`
keys are drawn with repeats, and the last value counts. With `vary` an example has its last n of P pairs, n uniform in 1..P. As
in the reference, the loss counts gen, vt and eos. Accuracy and exact match count vt and eos, which the reference generates.

Deviations: n is drawn per example, not per batch. The tokens sep, gen and eos are 16, 17 and 18 instead of 100, 101 and 102. We
add `alphabet`, the number of different keys that occur, out of 16^key_size. A curriculum can start with few keys, so that each
of them occurs often.
Source: RodkinIvan/associative-recurrent-memory-transformer.  Legend: P pairs, L tokens.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from memtx.data.tokenizers import Words
from memtx.tasks.base import Example, Task, check, next_token

SEP, GEN, EOS = 16, 17, 18


class Associative(Task):
    """Pairs of a key and a value, each in a segment, then a query."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        pairs: int = 10  # P
        key_size: int = 1
        value_size: int = 1
        alphabet: int = 0  # the number of keys that occur (0: all 16^key_size)
        rewrite: bool = False
        vary: bool = True

        def __post_init__(self):
            check(min(self.pairs, self.key_size, self.value_size) >= 1, "pairs, key_size and value_size must be at least 1")
            most = 16**self.key_size
            check(
                0 <= self.alphabet <= most,
                f"alphabet={self.alphabet} must be from 0 to {most}, the number of keys with key_size={self.key_size}",
            )
            check(
                self.rewrite or self.pairs <= self.choice,
                f"pairs={self.pairs} is more than the {self.choice} distinct keys; raise key_size or alphabet, or set rewrite",
            )

        @property
        def choice(self) -> int:
            """The number of different keys that occur."""
            return self.alphabet or 16**self.key_size

    tokenizer = Words("digits", [*map(str, range(16)), "sep", "gen", "eos"])

    def __init__(self, config: Config):
        super().__init__(config)
        self.block = config.key_size + config.value_size + 2
        self.length = (config.pairs + 1) * self.block

    def example(self, rng):
        c = self.config
        keys = rng.integers(c.choice, size=c.pairs) if c.rewrite else rng.choice(c.choice, c.pairs, replace=False)
        values = rng.integers(16, size=(c.pairs, c.value_size))
        n = int(rng.integers(1, c.pairs + 1)) if c.vary else c.pairs
        keys, values = keys[-n:], values[-n:]
        target = rng.choice(np.unique(keys))
        at = int(np.flatnonzero(keys == target)[-1])
        blocks = [[*digits(k, c.key_size), SEP, *v, EOS] for k, v in zip(keys, values, strict=True)]
        token_N = np.concatenate([*blocks, [*digits(target, c.key_size), GEN, *values[at], EOS]])
        asked_N = np.arange(len(token_N)) >= len(token_N) - c.value_size - 2
        scored_A = np.arange(c.value_size + 2) > 0  # not gen
        return Example(*next_token(token_N, asked_N), {"pairs": n, "distance": n - at}, scored_A)


def digits(number: int, size: int) -> list[int]:
    """Return the `size` little-endian digits of `number` in base 16."""
    return [(int(number) >> 4 * i) & 15 for i in range(size)]
