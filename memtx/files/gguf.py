"""The head of a GGUF file: its metadata, including the vocabulary, and the offset of each tensor.

The reader of the gguf package makes several arrays for each word of a vocabulary, which is slow and takes much memory.

Source: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from memtx.errors import UserError, brief

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
SHORT = 4096  # bytes that are read without comparing with the rest of the file


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file: its shape in NumPy's order, ggml's number for its format, and the offset of its first byte."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Head:
    """The metadata and tensors of a GGUF file, by name."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read_head(path: Path) -> Head:
    """Read the head of a GGUF file. Raises UserError if the file is missing, damaged or not GGUF."""
    try:
        stat = path.stat()
        return _read_head(path, stat.st_size, stat.st_mtime_ns)
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, ValueError, KeyError, struct.error, RecursionError) as error:  # from damaged bytes
        raise damaged(path, brief(error)) from error


@lru_cache(1)  # the settings, the weights and the tokenizer are in one file, whose head has the whole vocabulary
def _read_head(path: Path, size: int, changed: int) -> Head:
    with path.open("rb") as file:
        return _head(_Reader(file, size))


def damaged(path: Path, why: str) -> UserError:
    """Return the error for a damaged GGUF file."""
    return UserError(f"{path} cannot be read as GGUF ({why}): it is damaged or cut short; download it again")


class _Reader:
    """A reader of consecutive values. Raises ValueError if the file ends too early, before it allocates memory."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size

    def content(self, length: int) -> bytes:
        found = self.file.read(length) if length <= SHORT or length <= self.size - self.file.tell() else b""
        if len(found) < length:
            raise ValueError("it ends within its head")
        return found

    def scalars(self, code: str, length: int = 1) -> tuple:
        return struct.unpack(f"<{length}{code}", self.content(length * struct.calcsize(f"<{code}")))

    def scalar(self, code: str):
        return self.scalars(code)[0]

    def string(self) -> str:
        return self.content(self.scalar("Q")).decode()

    def value(self, kind: int):
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.scalar(SCALARS[kind])
        inner, length = self.scalar("I"), self.scalar("Q")
        return list(self.scalars(SCALARS[inner], length)) if inner in SCALARS else [self.value(inner) for _ in range(length)]


def _head(reader: _Reader) -> Head:
    magic, version = reader.content(4), reader.scalar("I")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError(f"it starts with {magic!r}, version {version}")
    tensors, pairs = reader.scalar("Q"), reader.scalar("Q")
    metadata = {reader.string(): reader.value(reader.scalar("I")) for _ in range(pairs)}
    found = {}
    for _ in range(tensors):
        name, axes = reader.string(), reader.scalar("I")
        shape = reader.scalars("Q", axes)[::-1]
        found[name] = Tensor(shape, reader.scalar("I"), reader.scalar("Q"))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"its alignment is {alignment!r}")
    start = -(-reader.file.tell() // alignment) * alignment
    return Head(metadata, {name: Tensor(t.shape, t.kind, start + t.offset) for name, t in found.items()})
