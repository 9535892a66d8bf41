"""Tokens of tasks of symbols: one per word."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np

from memtx.data.tokenizers.base import Tokenizer
from memtx.errors import UserError


class Words(Tokenizer):
    """The words of a task, divided by blanks; there are no specials, and `bos` is -1: nothing divides documents."""

    def __init__(self, name: str, words: Sequence[str]):
        super().__init__(name, len(words))
        self.bos = -1
        self.words = tuple(words)
        self.ids = {word: id for id, word in enumerate(words)}

    def encode(self, text: str, *, specials: bool = False) -> np.ndarray:
        """int32 ids of words. UserError for one that the task does not know."""
        for word in text.split():
            if word not in self.ids:
                raise UserError(
                    f"the tokens of {self.name} have no {word!r}; they are words divided by blanks, like {self.words[0]!r}"
                )
        return np.asarray([self.ids[word] for word in text.split()], np.int32)

    @cached_property
    def pieces(self) -> list[bytes]:
        return [f"{word} ".encode() for word in self.words]

    def stored(self) -> dict:
        return {"name": self.name, "words": self.words}


@cache
def numbers(count: int) -> Words:
    """The numbers below `count` as words."""
    return Words(f"numbers:{count}", [*map(str, range(count))])
