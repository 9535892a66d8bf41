"""Seals: digests of all folders of a saved step, which reveal a flipped bit before anything is restored.

Orbax writes each leaf to a separate folder (OCDBT off). Its formats have no checksum of the data, so a flipped bit would be
restored as a wrong number. The seal is written before Orbax gives the step its final name. A step without a seal was therefore
interrupted while it was saved. The seal covers all files except those directly in the step's folder. These are Orbax's
bookkeeping: memtx does not read them, and Orbax completes them after the seal.

On a disk the digests are SHA-256. In a bucket they are made of the MD5 that the bucket computes of each stored object, so
nothing is read back. The seal says which, so a step stays intact if it is copied from one to the other.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, cast

from memtx.files.remote import checksums, is_remote, reading

SEAL = "seal.json"


def write_seal(step: Path) -> None:
    """Write the digests of all folders below `step` to `step`/seal.json."""
    (step / SEAL).write_text(json.dumps(_digests(step, "md5" if is_remote(step) else "sha256"), indent=0))


def faults(step: Path, item: str | None = None) -> list[str]:
    """Describe the differences from the seal, one phrase per folder. item: check only this folder of the step.

    Raises UserError if a bucket does not answer, which says nothing of the step.
    """
    try:
        with reading(step):
            content = (step / SEAL).read_bytes()
        sealed = json.loads(content)
    except FileNotFoundError:
        return ["saving it was interrupted"]
    except (OSError, ValueError):
        return ["its seal cannot be read"]
    if item:
        sealed = {name: digest for name, digest in sealed.items() if name.split("/")[0] == item}
    with reading(step):
        found = _digests(step, "md5" if any(digest.startswith("md5:") for digest in sealed.values()) else "sha256", item)
    names = sorted(sealed.keys() | found.keys())
    return [_describe(name, name in sealed, name in found) for name in names if sealed.get(name) != found.get(name)]


def _describe(name: str, sealed: bool, found: bool) -> str:
    if not found:
        return f"{name} is missing"
    return f"{name} has changed" if sealed else f"{name} was added"


def _digests(step: Path, kind: str, item: str | None = None) -> dict[str, str]:
    """Return the digest of each folder over the names and contents of the files directly in it. Hashing frees the GIL."""
    folders = (_stored if is_remote(step) else _here)(step, item)
    with ThreadPoolExecutor() as pool:
        return dict(zip(folders, pool.map(partial(_digest, kind), folders.values()), strict=True))


def _here(step: Path, item: str | None) -> dict[str, dict[Path, str | None]]:
    """Return the files directly in each folder below `step`."""
    folders = sorted(p for p in step.rglob("*") if p.is_dir() and item in (None, p.relative_to(step).parts[0]))
    return {f.relative_to(step).as_posix(): {p: None for p in sorted(f.iterdir()) if p.is_file()} for f in folders}


def _stored(step: Path, item: str | None) -> dict[str, dict[Path, str | None]]:
    """Return the same for a step in a bucket, with the MD5 of each file."""
    folders = {}
    for name, md5 in sorted(checksums(step / item if item else step).items()):
        path = PurePosixPath(item or "", name)
        for parent in path.parents[:-1]:
            folders.setdefault(str(parent), {})
        if path.parent.name:
            folders[str(path.parent)][step / path] = md5
    return folders


def _digest(kind: str, files: dict[Path, str | None]) -> str:
    total = hashlib.new(kind, usedforsecurity=False)
    for path, md5 in files.items():
        total.update(f"{path.name}\0{md5 if md5 and kind == 'md5' else _read(path, kind)}\n".encode())
    return total.hexdigest() if kind == "sha256" else f"{kind}:{total.hexdigest()}"


def _read(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(cast(Any, file), lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
