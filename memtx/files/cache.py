"""Folders of the cache. One process builds each folder once. A folder is either complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from memtx.errors import UserError, check_utf8
from memtx.files.remote import local

VARIABLE = "MEMTX_CACHE"


def built(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`. If it is absent, `build(part)` fills a temporary folder, which is then renamed.

    Other processes that need the same folder wait. The remains of a killed build are deleted by the next one. Raises UserError
    if the folder cannot be written.
    """
    if folder.exists():
        return folder
    part = folder.with_name(folder.name + ".part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            if not folder.exists():
                _build(part, build)
                part.rename(folder)
    except OSError as error:
        raise UserError(f"cannot build {folder}: {error}; check that data.cache is writable and has room") from error
    return folder


def _build(part: Path, build: Callable[[Path], None]) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        build(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def root(cache: str | Path) -> Path:
    """Return the folder of the cache. "" means the environment variable MEMTX_CACHE, or ~/.cache/memtx if it is not set.

    Raises UserError if the user has no home folder for a path with ~, or if the name is not UTF-8.
    """
    path = cache or os.environ.get(VARIABLE) or "~/.cache/memtx"
    try:
        folder = absolute(path)
    except UserError as error:
        raise UserError(f"there is no folder for the cache: {error}; set --cache=DIR, data.cache or {VARIABLE}") from None
    check_utf8(folder, "data.cache")
    return folder


def absolute(path: str | Path) -> Path:
    """Return the absolute path, with `~` expanded. Raises UserError for an address, or if the user has no home folder."""
    try:
        return local(path).expanduser().absolute()
    except RuntimeError:
        raise UserError(f"no home folder is known for {str(path)!r}; give a path without ~") from None


def digest(*parts: object) -> str:
    """Return a hash of JSON-able values, 16 hex digits. It identifies corpora, tokenizers and files made from them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
