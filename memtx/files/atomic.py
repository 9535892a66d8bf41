"""Files that are replaced atomically."""

from __future__ import annotations

import os
from pathlib import Path

from memtx.errors import UserError, printable


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file atomically: at any time, even after a crash, it has either the old content or all of the new."""
    part = part_of(path)
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def check_new(path: Path) -> None:
    """Raise a UserError unless `write_atomic` can write a new file here. For the start of long work."""
    if path.is_dir():
        raise UserError(f"{printable(str(path))} is a folder: give the name of a new file")
    if os.path.lexists(path):
        raise UserError(f"{printable(str(path))} exists, and it would be overwritten: choose another file, or delete it")
    try:
        part_of(path).open("xb").close()
        part_of(path).unlink()
    except FileExistsError:
        raise UserError(
            f"{printable(str(part_of(path)))} exists, so another process may be writing it. If not, delete it"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot write {printable(str(path))}: {getattr(error, 'strerror', None) or error}") from None


def part_of(path: Path) -> Path:
    """Return the temporary file that `write_atomic` fills."""
    return path.with_name(path.name + ".part")
