"""Copying strings and looking up n-grams (Jelassi et al. 2024, 2402.01032).

copy    $ x | x .             the answer is the string, or its first `answer` letters
prefix  $ g | x | ans .       the answer is the rest of x after the n-gram g, or the next `answer` letters
suffix  $ x | g ans .         the same, with the n-gram after the string

Strings consist of letters, and their length is uniform in shortest..longest. The n-gram occurs once in x. The loss counts the
answer and the "." after it. An example has one string, but the reference packs several into 220 tokens. To test on strings
longer than in training, set `eval.task.longest`.  Legend: N tokens of the whole sequence.
"""

from __future__ import annotations

import dataclasses
import string

import numpy as np

from memtx.data.tokenizers import Words
from memtx.errors import check_known
from memtx.tasks.base import Example, Task, check, next_token


class Ngram(Task):
    """Strings to copy, in full or after an n-gram."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        kind: str = "copy"  # copy | prefix | suffix
        shortest: int = 20
        longest: int = 50
        ngram: int = 3
        answer: int = 0  # the number of letters of the answer (0: to the end of the string)
        letters: int = 26

        def __post_init__(self):
            check_known(self.kind, ("copy", "prefix", "suffix"), "kind")
            check(2 <= self.letters <= 26, "letters must be from 2 to 26")
            check(self.ngram >= 1 and self.answer >= 0, "ngram must be at least 1 and answer 0 or more")
            least = self.answer + 1 + (self.ngram if self.kind != "copy" else 0)
            check(least <= self.shortest <= self.longest, f"shortest must be from {least} to longest")

    tokenizer: Words = Words("letters", [*string.ascii_lowercase, "$", "|", ".", "*"])

    def __init__(self, config: Config):
        super().__init__(config)
        self.length = 2 * config.longest + config.ngram + 4

    def example(self, rng):
        c = self.config
        x, at = [], None
        while at is None:
            x = rng.integers(c.letters, size=int(rng.integers(c.shortest, c.longest + 1))).tolist()
            at = self._choose_gram(rng, x)
        gram, rest = x[at : at + c.ngram], x[at + c.ngram :]
        start, bar, stop = (self.tokenizer.ids[word] for word in "$|.")
        prompt, rest = {
            "copy": ([start, *x, bar], x),
            "prefix": ([start, *gram, bar, *x, bar], rest),
            "suffix": ([start, *x, bar, *gram], rest),
        }[c.kind]
        token_N = np.asarray([*prompt, *(rest[: c.answer] if c.answer else rest), stop])
        asked_N = np.arange(len(token_N)) >= len(prompt)
        return Example(*next_token(token_N, asked_N), {"letters": len(x)})

    def _choose_gram(self, rng, x: list[int]) -> int | None:
        """Draw the start of an n-gram that occurs once and has enough letters after it. Returns None if there is none."""
        c = self.config
        if c.kind == "copy":
            return 0
        grams = [tuple(x[i : i + c.ngram]) for i in range(len(x) - c.ngram + 1)]
        starts = [i for i in range(len(x) - c.ngram - max(c.answer, 1) + 1) if grams.count(grams[i]) == 1]
        return starts[rng.integers(len(starts))] if starts else None
