"""Labelled documents of one's own: which class is a whole text of?

Lines are {"text": "...", "label": "..."}; memtx.data.tasks.files says where. The label is asked for at the document's last
token, of a model with `model.output=classes`, however many calls it takes to read the document. Training may take pieces of
documents (`anywhere`) and ask for the label on the way too (`every`); held-out documents are judged at their end alone.

L tokens of a document, or of a piece of it.
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
        anywhere: bool = False  # training takes so many from anywhere in it, in each pass from another place
        every: int = 0  # training asks for the label after every so many tokens too; 0: at the end only

    def __init__(self, config: Config):
        super().__init__(config)
        self.names = _names({split: [example.slices["class"] for example in found] for split, found in self.examples.items()})
        self.classes = len(self.names)
        if config.tokens:
            self.length = min(self.length, config.tokens)

    @classmethod
    def made(cls, config: Config, tokenizer: Tokenizer, rows: Rows) -> dict[str, list[Example]]:
        names = _names({split: [label for _, label in found] for split, found in rows.items()})

        def example(split: str, text: str, label: str) -> Example:
            whole = split == "train" and config.anywhere
            token_L = tokenizer.cut(tokenizer.frame(text)[0], 0 if whole else config.tokens)
            return Example(token_L, _asked(len(token_L), names.index(label)), {"class": label})

        return {split: [example(split, *row) for row in found] for split, found in rows.items()}

    def draw(self, seed: int, split: str, index: int, stage: int = 0) -> Example:
        example = super().draw(seed, split, index, stage)
        return self._learned(example, [seed, stage, index]) if split == "train" else example

    def _learned(self, example: Example, seed: list[int]) -> Example:
        """A piece of a document, if it is longer than a piece may be, and where its label is asked for."""
        spare = max(len(example.token_L) - self.length, 0)
        start = int(np.random.PCG64(seed).random_raw()) % (spare + 1)
        token_L = example.token_L[start : start + self.length]
        return dataclasses.replace(
            example, token_L=token_L, label_L=_asked(len(token_L), int(example.label_L[-1]), self.config.every)
        )


def _asked(length: int, label: int, every: int = 0) -> np.ndarray:
    label_L = np.full(length, NOTHING, np.int32)
    label_L[-1] = label
    if every:
        label_L[every - 1 :: every] = label
    return label_L


def _names(labels: dict[str, list[str]]) -> list[str]:
    """The classes, in order."""
    return sorted({label for found in labels.values() for label in found})
