"""Files that are replaced atomically."""

from __future__ import annotations

import os
from pathlib import Path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file atomically: at any time, even after a crash, it has either the old content or all of the new."""
    part = part_of(path)
    with part.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def part_of(path: Path) -> Path:
    """Return the temporary file that `write_atomic` fills."""
    return path.with_name(path.name + ".part")
