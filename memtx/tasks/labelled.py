"""Labelled documents from the user's files: which class does a whole text belong to?

Lines are {"text": "...", "label": "..."} (see memtx.tasks.files). The label belongs to the document's last token, even if the
model needs many calls to read the document. Set `model.output=classes`. Training may use a piece of each document (`anywhere`)
and may add labels within it (`every`). Held-out documents have a single label, at the end.

If the model has names for its classes (`model.labels`), they determine the class of a label. Otherwise the data do.

Legend: L tokens of a document, or of a piece of it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from memtx.data.streams import NOTHING
from memtx.data.tokenizers import Tokenizer
from memtx.errors import UserError, quoted
from memtx.files.cache import digest
from memtx.tasks.base import Example
from memtx.tasks.files import FileTask, Rows


class Labelled(FileTask):
    """Documents, each with a class. `names` lists the classes."""

    keys = ("text", "label")

    @dataclasses.dataclass(frozen=True)
    class Config(FileTask.Config):
        tokens: int = 0  # the number of tokens used of each document, from its start (0: all)
        anywhere: bool = False  # training uses `tokens` from a random position instead, drawn again in each epoch
        every: int = 0  # training repeats the label after each `every` tokens (0: only at the end)
        labels: tuple[str, ...] = ()  # the classes in order: those of model.labels; (): those of the data

    def __init__(self, config: Config):
        super().__init__(config)
        found = {example.slices["class"] for examples in self.examples.values() for example in examples}
        self.names = list(class_names(found, config.labels))
        self.classes = len(self.names)
        self._class_of = {label: number for label, number in _numbers(self.names).items() if label in found}
        if config.tokens:
            self.length = min(self.length, config.tokens)

    @classmethod
    def build_examples(cls, config: Config, tokenizer: Tokenizer, rows: Rows) -> dict[str, list[Example]]:
        class_of = _numbers(class_names((label for found in rows.values() for _, label in found), config.labels))

        def example(split: str, text: str, label: str) -> Example:
            whole = split == "train" and config.anywhere
            token_L = tokenizer.cut(tokenizer.frame(text)[0], 0 if whole else config.tokens)
            if not len(token_L):
                raise UserError(f"the tokenizer {tokenizer.name} gives no tokens for the text {quoted([text])}")
            return Example(token_L, _place_labels(len(token_L), class_of[label]), {"class": label})

        return {split: [example(split, *row) for row in found] for split, found in rows.items()}

    @property
    def fingerprint(self) -> str:
        """A digest of the settings and of the labels in the data, without other labels that a model knows."""
        settings = dataclasses.asdict(dataclasses.replace(self.config, labels=()))
        return digest(type(self).__name__, settings, self._content, self._class_of)

    def draw(self, seed: int, split: str, index: int, stage: int = 0) -> Example:
        example = super().draw(seed, split, index, stage)
        return self._cut(example, [seed, stage, index]) if split == "train" else example

    def _cut(self, example: Example, seed: list[int]) -> Example:
        """Return a random piece of at most `length` tokens, with the labels of training."""
        spare = max(len(example.token_L) - self.length, 0)
        start = int(np.random.PCG64(seed).random_raw()) % (spare + 1)
        token_L = example.token_L[start : start + self.length]
        return dataclasses.replace(
            example, token_L=token_L, label_L=_place_labels(len(token_L), int(example.label_L[-1]), self.config.every)
        )


def _place_labels(length: int, label: int, every: int = 0) -> np.ndarray:
    """Return label_L with `label` at the last token, and also at every `every`-th token if that is not 0."""
    label_L = np.full(length, NOTHING, np.int32)
    label_L[-1] = label
    if every:
        label_L[every - 1 :: every] = label
    return label_L


def class_names(found: Iterable[str], known: Sequence[str] = ()) -> Sequence[str]:
    """Return the names of the classes, in order.

    found: the labels of the data. known: the model's names for its classes, which take precedence. If these are only LABEL_0,
    LABEL_1, ..., the sorted labels of the data replace them in order, and the remaining classes keep their names. Raises
    UserError, which lists both, if the data have a label that the model does not know.
    """
    labels = sorted(set(found), key=_order)
    unknown = [label for label in labels if label not in _numbers(known)]
    if not known or not unknown:
        return known or labels
    words = not any(_is_number(label) or label in known for label in labels)
    numbers = len(labels) == len(known) and all(map(_is_number, labels))
    if _unnamed(known) and len(labels) <= len(known) and (words or numbers):
        return [*labels, *known[len(labels) :]]
    raise UserError(f"the data have labels that the model does not know: {quoted(unknown)}; its labels are {quoted(known)}")


def _numbers(names: Sequence[str]) -> dict[str, int]:
    """Return the class of each label. If classes have no names, their numbers are also labels."""
    numbers = {str(i): i for i in range(len(names))} if _unnamed(names) else {}
    return numbers | {name: i for i, name in enumerate(names)}


def _unnamed(names: Sequence[str]) -> bool:
    return list(names) == [f"LABEL_{i}" for i in range(len(names))]


def _order(label: str) -> tuple[float, str]:
    """Return a sort key that orders numbers by value, before all words, and numbers within words by value too."""
    return float(label) if _is_number(label) else math.inf, re.sub("[0-9]+", lambda digits: digits[0].zfill(20), label)


def _is_number(label: str) -> bool:
    return bool(re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", label))
