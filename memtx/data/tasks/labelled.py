"""Labelled documents of one's own: which class is a whole text of?

Lines are {"text": "...", "label": "..."}; memtx.data.tasks.files says where. The label is asked for at the document's last
token, of a model with `model.output=classes`, however many calls it takes to read the document.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from memtx.data.tasks.base import NOTHING, Example
from memtx.data.tasks.files import FileTask, Rows
from memtx.data.tokenizers import Tokenizer


class Labelled(FileTask):
    keys = ("text", "label")

    @dataclasses.dataclass(frozen=True)
    class Config(FileTask.Config):
        tokens: int = 0  # the first so many of each document; 0: all

    def __init__(self, config: Config):
        super().__init__(config)
        self.names = _names({split: [example.slices["class"] for example in found] for split, found in self.examples.items()})
        self.classes = len(self.names)

    @classmethod
    def made(cls, config: Config, tokenizer: Tokenizer, rows: Rows) -> dict[str, list[Example]]:
        names = _names({split: [label for _, label in found] for split, found in rows.items()})

        def example(text: str, label: str) -> Example:
            token_L = tokenizer.cut(tokenizer.frame(text)[0], config.tokens)
            label_L = np.full(len(token_L), NOTHING, np.int32)
            label_L[-1:] = names.index(label)
            return Example(token_L, label_L, {"class": label})

        return {split: [example(*row) for row in found] for split, found in rows.items()}


def _names(labels: dict[str, list[str]]) -> list[str]:
    """The classes, in order."""
    return sorted({label for found in labels.values() for label in found})
