"""The text files that a command reads as documents: files, folders, or the standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from memtx.errors import UserError, printable
from memtx.files.text import decoded, read_text


def read_documents(words: Sequence[str], standard_input: str | None = None, most: int = -1) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each document. A document of a folder is named by its path, too.

    standard_input: the name of the text from the standard input, which the word - means. most: the maximum number of bytes of a
    file, or -1. Files of a folder that are not text are left out with a note. Raises UserError for any other file that cannot
    be read, is larger, or is not UTF-8.
    """
    for word in words:
        path = Path(word)
        if word == "-":
            if not standard_input:
                raise UserError("name the text from the standard input with --document")
            yield standard_input, decoded(sys.stdin.buffer.read(), "the standard input")
        elif path.is_dir():
            yield from _read_folder(path, most)
        else:
            yield path.as_posix(), read_text(path, most)


def _read_folder(folder: Path, most: int) -> Iterator[tuple[str, str]]:
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            text = read_text(path, most)
        except UserError as error:
            print(f"memtx: left out: {error}", file=sys.stderr)
            continue
        if text.strip():
            yield path.as_posix(), text
        else:
            print(f"memtx: left out: {printable(str(path))} is empty", file=sys.stderr)
