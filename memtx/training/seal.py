"""Seals: digests of all folders of a saved step, which reveal a flipped bit before anything is restored.

Orbax writes each leaf to a separate folder (OCDBT off). Its formats have no checksum of the data, so a flipped bit would be
restored as a wrong number. The seal is written before Orbax gives the step its final name. A step without a seal was therefore
interrupted while it was saved. The seal covers all files except those directly in the step's folder. These are Orbax's
bookkeeping: memtx does not read them, and Orbax completes them after the seal.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SEAL = "seal.json"


def write_seal(step: Path) -> None:
    """Write the digests of all folders below `step` to `step`/seal.json."""
    (step / SEAL).write_text(json.dumps(_digests(step), indent=0))


def faults(step: Path, item: str | None = None) -> list[str]:
    """Describe the differences from the seal, one phrase per folder. item: check only this folder of the step."""
    try:
        sealed = json.loads((step / SEAL).read_text())
    except FileNotFoundError:
        return ["saving it was interrupted"]
    except (OSError, ValueError):
        return ["its seal cannot be read"]
    if item:
        sealed = {name: digest for name, digest in sealed.items() if name.split("/")[0] == item}
    found = _digests(step, item)
    names = sorted(sealed.keys() | found.keys())
    return [_describe(name, name in sealed, name in found) for name in names if sealed.get(name) != found.get(name)]


def _describe(name: str, sealed: bool, found: bool) -> str:
    if not found:
        return f"{name} is missing"
    return f"{name} has changed" if sealed else f"{name} was added"


def _folders(step: Path, item: str | None) -> list[Path]:
    return sorted(p for p in step.rglob("*") if p.is_dir() and item in (None, p.relative_to(step).parts[0]))


def _digests(step: Path, item: str | None = None) -> dict[str, str]:
    """Return the sha256 of each folder over the names and contents of the files directly in it. Hashing frees the GIL."""
    folders = _folders(step, item)
    with ThreadPoolExecutor() as pool:
        return dict(zip((f.relative_to(step).as_posix() for f in folders), pool.map(_digest, folders), strict=True))


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
