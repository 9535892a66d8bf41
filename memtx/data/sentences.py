"""Cutting of texts into sentences, or into parts of whole sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise

# After a sentence, which a blank follows in most scripts, or between paragraphs.
ENDS = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+|(?<=[。！？])[”’」』）]*|\n\s*\n")


def split(text: str, fits: Callable[[str], bool]) -> list[tuple[int, int]]:
    """Return the first and last character of each sentence, without blanks around it. Longer ones are cut until they fit.

    fits: whether the model can read a text at once.
    """
    starts = [0, *(match.end() for match in ENDS.finditer(text)), len(text)]
    return [span for start, end in pairwise(starts) for span in _fitting(text, start, end, fits)]


def pack(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Return a text in parts that fit, each with as many whole sentences as possible. Blanks between parts are left out.

    fits: whether the model can read a text at once.
    """
    if fits(text):
        return [text]
    spans: list[tuple[int, int]] = []
    for start, end in split(text, fits):
        if spans and fits(text[spans[-1][0] : end]):
            spans[-1] = spans[-1][0], end
        else:
            spans.append((start, end))
    return [text[start:end] for start, end in spans]


def _fitting(text: str, start: int, end: int, fits: Callable[[str], bool]) -> Iterator[tuple[int, int]]:
    start, end = start + _blanks(text[start:end]), end - _blanks(text[start:end][::-1])
    if start >= end:
        return
    if end - start == 1 or fits(text[start:end]):
        yield start, end
        return
    half = (start + end) // 2
    blank = text.rfind(" ", start, half)
    half = blank if blank > start else half
    yield from _fitting(text, start, half, fits)
    yield from _fitting(text, half, end, fits)


def _blanks(text: str) -> int:
    """Return the number of blanks at the start of a text."""
    return len(text) - len(text.lstrip())
