"""Rows of text values from the user's files: JSON Lines, or tables with a header line (.csv, .tsv).

Files are UTF-8, or UTF-16 with a byte order mark. The delimiter of a table is a comma, semicolon, tab or bar, whichever gives
the header the required names.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memtx.errors import UserError, quoted

SPLITS = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
TABLES = {".csv": ",;\t|", ".tsv": "\t"}
LINES = (".jsonl", ".json", ".ndjson")
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}

csv.field_size_limit(2**31 - 1)  # a document may be one field


def find(given: Path) -> list[Path]:
    """Return the files of train, valid and test in a folder, or the given file alone.

    SPLITS lists the accepted names. Raises UserError if a split has no file or several.
    """
    if not given.is_dir():
        return [given]
    files = sorted(path for path in given.iterdir() if path.suffix.lower() in (*TABLES, *LINES))
    found = []
    for split, names in SPLITS.items():
        those = [path for path in files if path.stem.lower() in names]
        if len(those) != 1:
            there = quoted(path.name for path in those or files) or "no such file"
            raise UserError(f"{given} should have one file for {split}, such as {split}.jsonl or {split}.csv; there is {there}")
        found += those
    return found


def read(
    file: Path, keys: Sequence[str], optional: Sequence[str] = (), check: Callable[..., str] | None = None
) -> list[tuple[str, ...]]:
    """Return the values of these keys in each line.

    optional: further keys, whose values may be missing and are then "". check: returns the fault in the values of a line, or
    "". Raises UserError, with the line number, if a value is missing or empty, or if there is a fault.
    """

    def values(line) -> tuple[str, ...]:
        return tuple(_value(line, key) for key in (*keys, *optional))

    return [values(line) for line in _checked(file, keys, False, (lambda line: check(*values(line))) if check else None)]


def read_lines(file: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return all columns of each line. The columns `keys` must have texts, as for `read`.

    Raises UserError like `read`, or if two columns of a table have the same name.
    """
    return _checked(file, keys, every=True)


def _checked(file: Path, keys: Sequence[str], every: bool, check: Callable[[Any], str] | None = None) -> list[dict[str, Any]]:
    """Return the columns of each line. every: whether all columns are needed, and not only `keys`. check: see `read`."""
    form = "{" + ", ".join(f'"{key}": "..."' for key in keys) + "}"
    rows = []
    try:
        for number, line in _rows(file, keys, every):
            if fault := _fault(line, {key: _value(line, key) for key in keys}):
                raise UserError(f"{file}, line {number}: {fault}; each line must be {form}")
            if check and (fault := check(line)):
                raise UserError(f"{file}, line {number}: {fault}")
            rows.append(line)
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"cannot read {file}: {error}") from None
    if not rows:
        raise UserError(f"{file} has no examples")
    return rows


def _rows(file: Path, keys: Sequence[str], every: bool) -> Iterator[tuple[int, Any]]:
    """Yield (number, content) of each line that is not blank."""
    with file.open("rb") as stream:
        encoding = MARKS.get(stream.read(2), "utf-8-sig")
    with file.open(encoding=encoding, newline="") as stream:
        if delimiters := TABLES.get(file.suffix.lower()):
            yield from _table(file, stream, keys, delimiters, every)
        else:
            yield from ((number, _json(line)) for number, line in enumerate(stream, 1) if line.strip())


def _table(file: Path, stream, keys: Sequence[str], delimiters: str, every: bool) -> Iterator[tuple[int, dict[str, str]]]:
    headers = {}
    for delimiter in delimiters:
        stream.seek(0)
        headers[delimiter] = _header(csv.reader(stream, delimiter=delimiter))
    delimiter = max(delimiters, key=lambda d: (sum(name.strip() in keys for name in headers[d]), len(headers[d])))
    names = [name.strip() for name in headers[delimiter]]
    if names and any(names.count(key) != 1 for key in keys):
        raise UserError(f"{file} should have the columns {quoted(keys)}, each once; it has {quoted(names)}")
    if every and (repeated := [name for name, count in Counter(names).items() if count > 1]):
        raise UserError(f"{file} has several columns named {quoted(repeated)}; rename all but one, or they would be lost")
    stream.seek(0)
    blank = any(name.startswith(" ") for name in headers[delimiter])
    reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=blank, strict=True)
    _header(reader)
    for row in reader:
        if len(row) > len(names) and any(row[len(names) :]):
            raise UserError(
                f"{file}, line {reader.line_num}: {len(row)} values for {len(names)} columns; put values that contain "
                f"{delimiter!r} in double quotes"
            )
        if any(row):
            yield reader.line_num, dict(zip(names, row, strict=False))


def _header(reader) -> list[str]:
    return next((row for row in reader if any(row)), [])


def _json(line: str):
    """Return the value of a line of JSON, or None if it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _value(line, key: str) -> str:
    """Return the text at a key, or "" if there is none."""
    value = line.get(key) if isinstance(line, Mapping) else None
    return str(value) if isinstance(value, str | int | float) else ""


def _fault(line, values: Mapping[str, str]) -> str:
    """Return a description of the fault in a line, or ""."""
    if line is None:
        return "not JSON"
    for key, value in values.items():
        if not value:
            return f'no text at "{key}"'
        if "\0" in value:
            return f'"{key}" has a NUL, so the file is not text or has another encoding'
        if any("\ud800" <= character <= "\udfff" for character in value):
            return f'"{key}" has half of a surrogate pair, which is not a character'
    return ""
