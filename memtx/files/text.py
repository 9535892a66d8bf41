"""Text files."""

from __future__ import annotations

from pathlib import Path

from memtx.errors import UserError, printable


def read_text(path: Path, most: int = -1) -> str:
    """Return the text of a UTF-8 file, without a byte order mark. most: the maximum number of bytes, or -1 for any number.

    Raises UserError if the file cannot be read, is larger, or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            return decoded(file.read(most + 1 if most >= 0 else -1), printable(str(path)), most)
    except OSError as error:
        raise UserError(f"cannot read {printable(str(path))}: {error.strerror}") from None


def decoded(content: bytes, name: str, most: int = -1) -> str:
    """Return UTF-8 bytes as text. Raises UserError, with this name, if there are more than `most` or they are not UTF-8."""
    if 0 <= most < len(content):
        raise UserError(f"{name} is larger than {most // 2**20} MiB: split it into smaller files")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8 text") from None
