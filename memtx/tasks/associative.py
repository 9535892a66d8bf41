"""Associative retrieval: one key and value a segment, then a key is asked (ARMT, Rodkin et al. 2024, 2407.04841).

    [k1 sep v1 eos] [k2 sep v2 eos] ... [kP sep vP eos]  [kt gen vt eos]     each bracket is one segment

Keys and values are digits base 16, keys distinct (little-endian digits of a permutation of 16^key_size), or with `rewrite`
drawn with repeats, and then the last value counts. With `vary` an example has its last n of P pairs, n uniform in 1..P. The
loss is on gen, vt and eos, as in the reference; accuracy and exact match on vt and eos, which is what the reference
generates. Here n is drawn per example (the reference: per batch), and the marks are tokens 16, 17, 18 instead of 100, 101,
102. Our own is `alphabet`, how many of the 16^key_size keys occur: with few, a curriculum begins where the same two keys are
told apart again and again. Source: RodkinIvan/associative-recurrent-memory-transformer.  Legend: P pairs, L tokens.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from memtx.data.tokenizers import Words
from memtx.tasks.base import Example, Task, check, next_token

SEP, GEN, EOS = 16, 17, 18


class Associative(Task):
    @dataclasses.dataclass(frozen=True)
    class Config:
        pairs: int = 10  # P
        key_size: int = 1
        value_size: int = 1
        alphabet: int = 0  # keys that occur; 0: all 16^key_size
        rewrite: bool = False
        vary: bool = True

        def __post_init__(self):
            check(min(self.pairs, self.key_size, self.value_size) >= 1, "pairs, key_size and value_size must be at least 1")
            most, keys = 16**self.key_size, f"alphabet={self.alphabet} of key_size={self.key_size}"
            check(0 <= self.alphabet <= most, f"{keys} cannot be: there are {most}")
            check(self.rewrite or self.pairs <= self.choice, f"pairs={self.pairs} is more than the keys that differ: {keys}")

        @property
        def choice(self) -> int:
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
    """Little-endian, base 16."""
    return [(int(number) >> 4 * i) & 15 for i in range(size)]
