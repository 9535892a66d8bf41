"""The text files of a folder: how to find and decode them, and to report files that are left out."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from memtx.errors import printable

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NAMED = 3  # files that a note lists by name


def files_in(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the regular files below a folder by relative path, and the reason for each entry that is left out.

    Links are followed, once per folder. Hidden entries are skipped. Raises OSError, with the path, if a folder cannot be listed
    or a link is broken.
    """
    found, left, seen = {}, {}, {_identity(folder)}
    pending = [folder]
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if path.name.startswith("."):
                continue
            stat, id = path.stat(), printable(path.relative_to(folder).as_posix())
            if os.path.isdir(path):
                if (identity := (stat.st_dev, stat.st_ino)) in seen:
                    left[id] = "links to a folder that is already read"
                else:
                    seen.add(identity)
                    pending.append(path)
            elif os.path.isfile(path):
                found[id] = path
            else:
                left[id] = "not a regular file"
    return found, left


def decode(content: bytes) -> str:
    """Return the text of a file, decoded by its byte order mark or else as UTF-8. Invalid bytes become U+FFFD."""
    return content.decode(_encoding(content), errors="replace")


def fault(content: bytes) -> str:
    """Return the reason why a file is not text, or ""."""
    encoding = _encoding(content)
    if encoding in ("utf-16", "utf-32"):
        try:
            content.decode(encoding)
        except UnicodeDecodeError:
            return "binary"
    elif b"\0" in content[:8192]:
        return "binary, or UTF-16 without a byte order mark"
    return "" if decode(content).strip() else "blank"


def is_damaged(content: bytes) -> bool:
    """Return whether some bytes are invalid in the encoding, as in a Latin-1 file."""
    try:
        content.decode(_encoding(content))
    except UnicodeDecodeError:
        return True
    return False


def notes(left: dict[str, str], damaged: list[str]) -> list[str]:
    """Return one line per reason to leave files out, and one for damaged files, each with a count and the first names."""
    by_fault: dict[str, list[str]] = {}
    for id, reason in left.items():
        by_fault.setdefault(f"left out ({reason})", []).append(id)
    if damaged:
        by_fault["not UTF-8 (invalid bytes became U+FFFD)"] = damaged
    return [f"{len(ids)} {'file' if len(ids) == 1 else 'files'} {reason}: {_some(ids)}" for reason, ids in by_fault.items()]


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")


def _encoding(content: bytes) -> str:
    return next((encoding for mark, encoding in MARKS if content.startswith(mark)), "utf-8")


def _identity(folder: Path) -> tuple[int, int]:
    return (stat := folder.stat()).st_dev, stat.st_ino
