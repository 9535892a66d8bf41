"""Tasks whose examples are in files of one's own.

`path` is a folder with files for train, valid (or validation, val, dev) and test; or one file, split 90/5/5 by the text that
examples begin with, so that no source or text is on two sides. A file is JSON Lines, or .csv or .tsv with a line of names: see
memtx.data.rows. To train, each pass takes the examples in another order; held-out ones keep the order of their file.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from memtx.data import rows, tokenizers
from memtx.data.corpora import by_hash
from memtx.data.tokenizers import Tokenizer, byte_tokenizer
from memtx.errors import UserError
from memtx.files.cache import absolute, digest
from memtx.files.hub import find
from memtx.tasks.base import SPLITS, Example, Task

Rows = Mapping[str, list[tuple[str, ...]]]  # by split: the values of a task's keys


class FileTask(Task):
    """keys: what each line of a file has, none of them empty."""

    keys: ClassVar[tuple[str, ...]]

    @dataclasses.dataclass(frozen=True)
    class Config:
        path: str = ""  # a folder, or a file
        tokenizer: str = "bytes"  # bytes | pretrained:NAME
        cache: str = ""  # "": as data.cache

        def __post_init__(self):
            for name, value in vars(self).items():
                if isinstance(value, int) and value < 0:
                    raise UserError(f"{name} must be at least 0, not {value}")

    def __init__(self, config):
        super().__init__(config)
        self.tokenizer = named(config.tokenizer, config.cache)
        self.examples, self._content = _prepared(type(self), config, _files(config.path))
        self.length = max(len(example.token_L) for found in self.examples.values() for example in found)

    @classmethod
    @abc.abstractmethod
    def made(cls, config, tokenizer: Tokenizer, rows: Rows) -> dict[str, list[Example]]:
        """The examples of each split."""

    def example(self, rng: np.random.Generator) -> Example:
        found = self.examples["train"]
        return found[int(rng.integers(len(found)))]

    def draw(self, seed: int, split: str, index: int, stage: int = 0) -> Example:
        found = self.examples[split]
        if split == "train":
            epoch, at = divmod(index, len(found))
            return found[int(_order(seed, stage, epoch, len(found))[at])]
        if index >= len(found):
            raise UserError(f"{split} has {len(found)} examples: set eval.examples={len(found)} or less")
        return found[index]

    @property
    def fingerprint(self) -> str:
        """Of all that is in the files, too."""
        return digest(type(self).__name__, dataclasses.asdict(self.config) | {"cache": ""}, self._content)


@lru_cache(4)
def _order(seed: int, stage: int, epoch: int, count: int) -> np.ndarray:
    return np.argsort(np.random.PCG64([seed, stage, epoch]).random_raw(count), kind="stable")


@lru_cache(8)
def named(name: str, cache: str) -> Tokenizer:
    kind, _, source = name.partition(":")
    if kind == "pretrained":
        return tokenizers.pretrained(find(source, cache))
    if name != "bytes":
        raise UserError(f"data.task.tokenizer={name!r} should be bytes or pretrained:NAME")
    return byte_tokenizer()


def _files(path: str) -> tuple[tuple[Path, int, int], ...]:
    """The files that hold the examples, and what changes when they do."""
    if not path:
        raise UserError("data.task.path is not set: give a folder with train.jsonl, valid.jsonl and test.jsonl, or one file")
    try:
        return tuple((file, (stat := file.stat()).st_mtime_ns, stat.st_size) for file in rows.find(absolute(path)))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


@lru_cache(8)
def _prepared(cls: type[FileTask], config, files) -> tuple[dict[str, list[Example]], str]:
    """The examples of each split, and what stands for them. A run makes its tasks several times, and reads them once."""
    found = [rows.read(file, cls.keys) for file, *_ in files]
    if len(files) == 1:
        split = by_hash(sorted({row[0] for row in found[0]}))
        if not all(split.values()):
            raise UserError(f"{files[0][0]} has too little to split: three different values of {cls.keys[0]!r} are the fewest")
        sides = {begin: side for side, begins in split.items() for begin in begins}
        by_split = {side: [row for row in found[0] if sides[row[0]] == side] for side in SPLITS}
    else:
        by_split = dict(zip(SPLITS, found, strict=True))
    return cls.made(config, named(config.tokenizer, config.cache), by_split), digest(by_split)
