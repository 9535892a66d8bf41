"""Text files."""

from __future__ import annotations

from pathlib import Path

from memtx.errors import UserError, printable


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark. Raises UserError if it cannot be read or is not UTF-8."""
    try:
        return decoded(path.read_bytes(), printable(str(path)))
    except OSError as error:
        raise UserError(f"cannot read {printable(str(path))}: {error.strerror}") from None


def decoded(content: bytes, name: str) -> str:
    """Return UTF-8 bytes as text. Raises UserError, with this name, if they are not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{name} is not UTF-8 text") from None
