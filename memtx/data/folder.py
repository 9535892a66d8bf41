"""The text files of a folder: finding them, decoding them, and saying which files are left out."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from memtx.errors import printable

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of this one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
NAMED = 3  # of the files with one fault


def files_in(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The regular files below a folder by relative path, and the reasons why other entries are left out, by theirs.

    Links are followed, to each folder once. Hidden entries are skipped. Raises OSError, with the path, for a folder that cannot
    be listed and for a link to nothing.
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
                    left[id] = "links to a folder that is read already"
                else:
                    seen.add(identity)
                    pending.append(path)
            elif os.path.isfile(path):
                found[id] = path
            else:
                left[id] = "no regular file"
    return found, left


def decode(content: bytes) -> str:
    """The text of a file by its byte order mark, or else as UTF-8. Bytes that do not fit become U+FFFD."""
    return content.decode(_encoding(content), errors="replace")


def fault(content: bytes) -> str:
    """Why a file is no text, or ""."""
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
    """Whether some bytes do not fit the encoding, as in a file in Latin-1."""
    try:
        content.decode(_encoding(content))
    except UnicodeDecodeError:
        return True
    return False


def notes(left: dict[str, str], damaged: list[str]) -> list[str]:
    """One line for each reason why files are left out, with their number and the first names, and one for damaged files."""
    by_fault: dict[str, list[str]] = {}
    for id, reason in left.items():
        by_fault.setdefault(f"left out ({reason})", []).append(id)
    if damaged:
        by_fault["not UTF-8 (bytes that do not fit became U+FFFD)"] = damaged
    return [f"{len(ids)} {'file' if len(ids) == 1 else 'files'} {reason}: {_some(ids)}" for reason, ids in by_fault.items()]


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:NAMED]) + (", ..." if len(ids) > NAMED else "")


def _encoding(content: bytes) -> str:
    return next((encoding for mark, encoding in MARKS if content.startswith(mark)), "utf-8")


def _identity(folder: Path) -> tuple[int, int]:
    return (stat := folder.stat()).st_dev, stat.st_ino
