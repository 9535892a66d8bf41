"""A question and a text in one sequence of tokens, and windows of it for texts that are too long.

T tokens of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError, quoted


@dataclass(frozen=True, eq=False)
class Framed:
    """The tokens of a question, a text and the special tokens around them. The tokens of the text are contiguous.

    ids_T    the tokens
    type_T   their types, as pretrained encoders know them
    span_T2  the first character of each token of the text, and the one after its last. (-1, -1) for other tokens
    """

    ids_T: np.ndarray
    type_T: np.ndarray
    span_T2: np.ndarray

    @cached_property
    def text(self) -> slice:
        """The tokens of the text."""
        at = np.flatnonzero(self.span_T2[:, 0] >= 0)
        return slice(int(at[0]), int(at[-1]) + 1) if len(at) else slice(0, 0)

    @property
    def length(self) -> int:
        """The number of tokens of the text."""
        return self.text.stop - self.text.start

    @property
    def extra(self) -> int:
        """The number of other tokens."""
        return len(self.ids_T) - self.length

    def find(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the first and the last token with a character of a span of the text, or None if there is none."""
        span_n2 = self.span_T2[self.text]
        found = self.text.start + np.flatnonzero((span_n2[:, 1] > start) & (span_n2[:, 0] < end))
        return (int(found[0]), int(found[-1])) if len(found) else None

    def cut(self, start: int, tokens: int) -> Framed:
        """Return the sequence with at most `tokens` tokens, in which the text begins with its token `start`."""
        first = self.text.start + start
        kept = slice(first, min(first + tokens - self.extra, self.text.stop))

        def cut(array: np.ndarray) -> np.ndarray:
            return np.concatenate([array[: self.text.start], array[kept], array[self.text.stop :]])

        return Framed(cut(self.ids_T), cut(self.type_T), cut(self.span_T2))

    def windows(self, tokens: int) -> list[Framed]:
        """Return windows of at most `tokens` tokens that cover the text. Each shares half of its text with the next."""
        room = tokens - self.extra
        if self.length <= room:
            return [self]
        starts = [*range(0, self.length - room, max(room // 2, 1)), self.length - room]
        return [self.cut(start, tokens) for start in starts]


def frame(tokenizer: Tokenizer, question: str, text: str, tokens: int = 0) -> Framed:
    """Return a question and a text as one sequence.

    tokens: the maximum number of tokens of a window. Raises UserError if the question leaves no room for the text, or if the
    tokenizer cannot join two texts.
    """
    framed = Framed(*tokenizer.locate(question, text))
    if tokens and framed.extra >= tokens:
        raise UserError(
            f"the question {quoted([question])} has {framed.extra} tokens and leaves no room for its text in {tokens}"
        )
    return framed
