"""The tokenizer of synthetic tasks, with one token per word."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property

import numpy as np

from memtx.data.tokenizers.base import Tokenizer
from memtx.errors import UserError


class Words(Tokenizer):
    """The words of a task, separated by spaces. There are no specials, and `bos` is -1."""

    def __init__(self, name: str, words: Sequence[str]):
        super().__init__(name, len(words))
        self.bos = -1
        self.words = tuple(words)
        self.ids = {word: id for id, word in enumerate(words)}

    def encode(self, text: str, *, specials: bool = False) -> np.ndarray:
        """Return the ids of the words of a text, int32. Raises UserError for an unknown word."""
        for word in text.split():
            if word not in self.ids:
                raise UserError(
                    f"{self.name} has no word {word!r}; its words are separated by spaces and look like {self.words[0]!r}"
                )
        return np.asarray([self.ids[word] for word in text.split()], np.int32)

    @cached_property
    def pieces(self) -> list[bytes]:
        """Return the bytes of each word and the space after it."""
        return [f"{word} ".encode() for word in self.words]

    def stored(self) -> dict:
        """Return the tokenizer as JSON values."""
        return {"name": self.name, "words": self.words}


@cache
def numbers(count: int) -> Words:
    """Return the tokenizer whose words are the numbers below `count`."""
    return Words(f"numbers:{count}", [*map(str, range(count))])
