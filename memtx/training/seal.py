"""Seals: a digest of every folder of a saved step, so that a single flipped bit is noticed before anything is restored.

Orbax writes each leaf as a folder of its own (OCDBT off), and its formats carry no checksum of the data: a flipped bit is
restored as a wrong number. The seal is written before Orbax gives the step its final name, so that a step without one was
cut off. It covers every file but those directly in the step's own folder, which are Orbax's bookkeeping, not read here, and
finished after the seal.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SEAL = "seal.json"


def write_seal(step: Path) -> None:
    """Digest every folder below `step` and note the digests in `step`/seal.json."""
    (step / SEAL).write_text(json.dumps(_digests(step), indent=0))


def faults(step: Path, item: str | None = None) -> list[str]:
    """What differs from the seal, one phrase a folder; nothing for a sound step. `item`: look at that top folder only."""
    try:
        sealed = json.loads((step / SEAL).read_text())
    except FileNotFoundError:
        return ["it was cut off before it was sealed"]
    except (OSError, ValueError):
        return ["its seal is not readable"]
    if item:
        sealed = {name: digest for name, digest in sealed.items() if name.split("/")[0] == item}
    found = _digests(step, item)
    names = sorted(sealed.keys() | found.keys())
    return [_fault(name, name in sealed, name in found) for name in names if sealed.get(name) != found.get(name)]


def _fault(name: str, sealed: bool, found: bool) -> str:
    if not found:
        return f"{name} is missing"
    return f"{name} is not what was written" if sealed else f"{name} was added"


def _folders(step: Path, item: str | None) -> list[Path]:
    return sorted(p for p in step.rglob("*") if p.is_dir() and item in (None, p.relative_to(step).parts[0]))


def _digests(step: Path, item: str | None = None) -> dict[str, str]:
    """sha256 by folder, over the names and contents of the files directly in it; threads, since hashing frees the GIL."""
    folders = _folders(step, item)
    with ThreadPoolExecutor() as pool:
        return dict(zip((f.relative_to(step).as_posix() for f in folders), pool.map(_digest, folders), strict=True))


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
