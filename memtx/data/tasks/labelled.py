"""Labelled documents of one's own: which class is a whole text of?

A folder has train.jsonl, valid.jsonl and test.jsonl, each line {"text": "...", "label": "..."}. The label is asked for at the
document's last token, of a model with `model.output=classes`, however many calls it takes to read the document. To train, each
pass takes the documents in an order of its own; held-out ones come as they stand.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache
from pathlib import Path

import numpy as np

from memtx.data import tokenizers
from memtx.data.hub import find
from memtx.data.tasks.base import NOTHING, SPLITS, Example, Task
from memtx.data.tokenizers import Tokenizer, byte_tokenizer
from memtx.errors import UserError


class Labelled(Task):
    @dataclasses.dataclass(frozen=True)
    class Config:
        path: str = ""  # the folder
        tokenizer: str = "bytes"  # bytes | pretrained:NAME
        tokens: int = 0  # the first so many of each document; 0: all
        cache: str = "~/.cache/memtx"

    def __init__(self, config: Config):
        super().__init__(config)
        self.tokenizer = _tokenizer(config.tokenizer, config.cache)
        self._examples, self.names = _read(config)
        self.classes = len(self.names)
        self.length = max(len(example.token_L) for found in self._examples.values() for example in found)

    def example(self, rng: np.random.Generator) -> Example:
        found = self._examples["train"]
        return found[int(rng.integers(len(found)))]

    def draw(self, seed: int, split: str, index: int, stage: int = 0) -> Example:
        found = self._examples[split]
        if split == "train":
            epoch, at = divmod(index, len(found))
            return found[int(np.argsort(np.random.PCG64([seed, stage, epoch]).random_raw(len(found)), kind="stable")[at])]
        if index >= len(found):
            raise UserError(f"{split}.jsonl has {len(found)} documents: set eval.examples={len(found)} or less")
        return found[index]


@cache
def _tokenizer(name: str, cache: str) -> Tokenizer:
    kind, _, source = name.partition(":")
    if kind == "pretrained":
        return tokenizers.pretrained(find(source, cache))
    if name != "bytes":
        raise UserError(f"data.task.tokenizer={name!r} should be bytes or pretrained:NAME")
    return byte_tokenizer()


@cache
def _read(config: Labelled.Config) -> tuple[dict[str, list[Example]], list[str]]:
    """The examples of each split, and the names of the classes, in order."""
    if not config.path:
        raise UserError("data.task.path is not set: give a folder with train.jsonl, valid.jsonl and test.jsonl")
    lines = {split: _lines(Path(config.path).expanduser() / f"{split}.jsonl") for split in SPLITS}
    names = sorted({label for found in lines.values() for _, label in found})
    tokenizer = _tokenizer(config.tokenizer, config.cache)

    def example(text: str, label: str) -> Example:
        token_L = tokenizer.frame(text)[0]
        token_L = token_L[: config.tokens or None]
        label_L = np.full(len(token_L), NOTHING, np.int32)
        label_L[-1:] = names.index(label)
        return Example(token_L, label_L, {"class": label})

    return {split: [example(*line) for line in found] for split, found in lines.items()}, names


def _lines(file: Path) -> list[tuple[str, str]]:
    try:
        found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        pairs = [(str(line["text"]), str(line["label"])) for line in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'cannot read {file} ({error}); each line should be {{"text": "...", "label": "..."}}') from None
    if not pairs:
        raise UserError(f"{file} holds no documents")
    return pairs
