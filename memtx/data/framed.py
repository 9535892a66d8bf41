"""A question and a text in one sequence of tokens, and windows of it for texts that are too long.

T tokens of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    @property
    def text_T(self) -> np.ndarray:
        """Return which tokens are of the text, bool."""
        return self.span_T2[:, 0] >= 0

    @property
    def extra(self) -> int:
        """Return the number of tokens that are not of the text."""
        return int((~self.text_T).sum())

    def find(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the first and the last token with a character of a span of the text, or None if there is none."""
        found = np.flatnonzero(self.text_T & (self.span_T2[:, 1] > start) & (self.span_T2[:, 0] < end))
        return (int(found[0]), int(found[-1])) if len(found) else None

    def cut(self, start: int, tokens: int) -> Framed:
        """Return the sequence with at most `tokens` tokens, in which the text begins with its token `start`."""
        at = np.flatnonzero(self.text_T)
        kept = np.setdiff1d(np.arange(len(self.ids_T)), np.setdiff1d(at, at[start : start + tokens - self.extra]))
        return Framed(self.ids_T[kept], self.type_T[kept], self.span_T2[kept])

    def windows(self, tokens: int) -> list[Framed]:
        """Return windows of at most `tokens` tokens that cover the text. Each shares half of its text with the next."""
        length, room = int(self.text_T.sum()), tokens - self.extra
        if length <= room:
            return [self]
        starts = [*range(0, length - room, max(room // 2, 1)), length - room]
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
