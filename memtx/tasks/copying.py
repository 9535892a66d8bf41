"""Copying: repeat the input once or more, reversed, or without the blanks in it.

copy       x1 ... xn | x1 ... xn x1 ... xn     the target is the sequence `repeats` times (2 in RMT, Bulatov et al. 2022)
reverse    x1 ... xn | xn ... x1
selective  . x1 . . x2 ... . xn . ? ? ... ?    n tokens at random positions of `length`. The labels are on n marks at the end
                                               (Gu and Dao 2023: length 4096, n 16, 16 symbols)
Legend: N tokens of the whole sequence.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from memtx.data.streams import NOTHING
from memtx.data.tokenizers import Words
from memtx.errors import check_known
from memtx.tasks.base import Example, Task, check, next_token


class Copying(Task):
    """Sequences that are followed by their copy."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        kind: str = "copy"  # copy | reverse | selective
        symbols: int = 16
        tokens: int = 24  # n
        repeats: int = 2  # of copy
        length: int = 256  # of selective: the number of positions for the n tokens

        def __post_init__(self):
            check_known(self.kind, ("copy", "reverse", "selective"), "kind")
            check(min(self.symbols, self.tokens, self.repeats) >= 1, "symbols, tokens and repeats must be at least 1")
            check(self.kind != "selective" or self.tokens <= self.length, "length must be at least tokens")

    def __init__(self, config: Config):
        super().__init__(config)
        self.blank, self.mark = config.symbols, config.symbols + 1
        self.tokenizer = Words("symbols", [*map(str, range(config.symbols)), ".", "?"])
        again = {"copy": config.repeats, "reverse": 1}
        spread = config.length + config.tokens
        self.length = config.tokens * (1 + again[config.kind]) if config.kind in again else spread

    def example(self, rng):
        c = self.config
        items = rng.integers(c.symbols, size=c.tokens)
        slices = {"tokens": c.tokens, "length": self.length}
        if c.kind == "selective":
            token_L = np.full(self.length, self.mark, np.int32)
            token_L[: c.length] = self.blank
            token_L[np.sort(rng.choice(c.length, c.tokens, replace=False))] = items
            label_L = np.full(self.length, NOTHING, np.int32)
            label_L[c.length :] = items
            return Example(token_L, label_L, slices)
        target = np.tile(items, c.repeats) if c.kind == "copy" else items[::-1]
        token_N = np.concatenate([items, [self.mark], target])
        return Example(*next_token(token_N, np.arange(len(token_N)) > c.tokens), slices)
