"""Tasks that read their examples from the user's files.

`path` is a folder with files for train, valid (or validation, val, dev) and test, or one file. One file is split 90/5/5 by the
first value of each line, so that no source or text is in two splits. A file has JSON Lines, or is a .csv or .tsv with a header
(see memtx.data.rows). Each epoch of training shuffles the examples again. Held-out examples keep the file's order.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from memtx.data import rows
from memtx.data.corpora import by_hash
from memtx.data.tokenizers import Tokenizer, make_tokenizer
from memtx.errors import UserError
from memtx.files.cache import absolute, digest
from memtx.tasks.base import SPLITS, Example, Task

Rows = Mapping[str, list[tuple[str, ...]]]  # split -> values of a task's keys, one tuple per line


class FileTask(Task):
    """A task whose examples are the lines of files.

    Raises UserError if a file cannot be read, has no examples, or has a line without one of the `keys`.
    """

    keys: ClassVar[tuple[str, ...]]  # the keys of each line, whose values must not be empty
    optional: ClassVar[tuple[str, ...]] = ()  # further keys, whose values are "" in lines without them
    texts: ClassVar[slice] = slice(None)  # the values that a tokenizer is trained on

    @dataclasses.dataclass(frozen=True)
    class Config:
        path: str = ""  # a folder or a file
        tokenizer: str = "bytes"  # bytes | bpe:SIZE (trained on the lines of train) | pretrained:NAME
        cache: str = ""  # "": as data.cache

        def __post_init__(self):
            for name, value in vars(self).items():
                if isinstance(value, int) and value < 0:
                    raise UserError(f"{name} must be at least 0, not {value}")

    def __init__(self, config):
        super().__init__(config)
        self.tokenizer, self.examples, self._content = _load(type(self), config, _find_files(config.path))
        self.length = max(len(example.token_L) for found in self.examples.values() for example in found)

    @classmethod
    def find_fault(cls, *values: str) -> str:
        """Return the fault in the values of a line, or ""."""
        return ""

    @classmethod
    @abc.abstractmethod
    def build_examples(cls, config, tokenizer: Tokenizer, rows: Rows) -> dict[str, list[Example]]:
        """Build the examples of each split."""

    def example(self, rng: np.random.Generator) -> Example:
        found = self.examples["train"]
        return found[int(rng.integers(len(found)))]

    def draw(self, seed: int, split: str, index: int, stage: int = 0) -> Example:
        found = self.examples[split]
        if split == "train":
            epoch, at = divmod(index, len(found))
            return found[int(_order(seed, stage, epoch, len(found))[at])]
        if index >= len(found):
            raise UserError(f"{split} has {len(found)} examples: set eval.examples={len(found)} or fewer")
        return found[index]

    @property
    def fingerprint(self) -> str:
        """A digest of the settings, except the cache, and of the content of the files."""
        return digest(type(self).__name__, dataclasses.asdict(self.config) | {"cache": ""}, self._content)


@lru_cache(4)
def _order(seed: int, stage: int, epoch: int, count: int) -> np.ndarray:
    return np.argsort(np.random.PCG64([seed, stage, epoch]).random_raw(count), kind="stable")


def _find_files(path: str) -> tuple[tuple[Path, int, int], ...]:
    """Return (file, time of modification, size) of each file with examples. They are the cache key of `_load`."""
    if not path:
        raise UserError("data.task.path is not set: give a folder with train.jsonl, valid.jsonl and test.jsonl, or one file")
    try:
        return tuple((file, (stat := file.stat()).st_mtime_ns, stat.st_size) for file in rows.find(absolute(path)))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


@dataclasses.dataclass(frozen=True, eq=False)
class _Lines:
    """The values of all lines as texts for a tokenizer. texts: which values of a line."""

    by_split: Rows
    texts: slice
    fingerprint: str

    def documents(self, split: str) -> Iterator[tuple[str, str]]:
        return ((str(line), text) for line, row in enumerate(self.by_split[split]) for text in row[self.texts])


@lru_cache(8)
def _load(cls: type[FileTask], config, files) -> tuple[Tokenizer, dict[str, list[Example]], str]:
    """Return the tokenizer, the examples of each split and a digest of the lines.

    The result is cached, because a run builds tasks several times.
    """
    found = [rows.read(file, cls.keys, cls.optional, cls.find_fault) for file, *_ in files]
    if len(files) == 1:
        split = by_hash(sorted({row[0] for row in found[0]}))
        if not all(split.values()):
            raise UserError(f"{files[0][0]} is too small to split: it needs at least three different values of {cls.keys[0]!r}")
        split_of = {value: name for name, values in split.items() for value in values}
        by_split = {name: [row for row in found[0] if split_of[row[0]] == name] for name in SPLITS}
    else:
        by_split = dict(zip(SPLITS, found, strict=True))
    content = digest(by_split)
    tokenizer = make_tokenizer(config.tokenizer, _Lines(by_split, cls.texts, content), config.cache)
    return tokenizer, cls.build_examples(config, tokenizer, by_split), content
