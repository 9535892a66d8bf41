"""Passkey: a number hidden in repeated sentences (Mohtashami and Jaggi 2023, 2305.16300).

The garbage text has n bytes and is split at a random position. Both parts begin at the start of the repeated text, as in the
reference. The key has five digits, 10000 to 49999, so that all examples of a length are equally long. The prompts come from the
reference. Report accuracy by length and depth.  Source: epfml/landmark-attention, Apache-2.0.
"""

from __future__ import annotations

import dataclasses

from memtx.tasks.base import TextTask, tenth
from memtx.tasks.words import GRASS

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
INFORMATION = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"


class Passkey(TextTask):
    """Repeated sentences with a number in them, and a question about it."""

    @dataclasses.dataclass(frozen=True)
    class Config:
        length: int = 1024  # bytes

        def __post_init__(self):
            Passkey(self).room(prompt(10_000, "", "") + " 10000")

    def example(self, rng):
        key = int(rng.integers(10_000, 50_000))
        garbage = self.room(prompt(key, "", "") + f" {key}")
        before = int(rng.integers(garbage + 1))
        text = (GRASS + " ") * (garbage // len(GRASS) + 1)
        depth = tenth(before / max(garbage, 1))
        text = prompt(key, text[:before], text[: garbage - before])
        return self.build_example(text, f" {key}", length=self.length, depth=depth)


def prompt(key: int, prefix: str, suffix: str) -> str:
    """Return the text up to the answer, with garbage text `prefix` before the key and `suffix` after it."""
    return "\n".join([TASK, prefix, INFORMATION.format(key=key), suffix, QUESTION])
