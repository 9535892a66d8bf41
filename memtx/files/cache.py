"""Folders of the cache: each is built once, by one process, and appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from memtx.errors import UserError, check_utf8

VARIABLE = "MEMTX_CACHE"


def built(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, made by `build(part)` if it is not there: `part` takes its name once it is complete.

    Other processes that want the same folder wait. What a killed build left in `part` is thrown away by the next one.
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
        raise UserError(f"cannot build {folder}: {error}; is data.cache writable, with room left?") from error
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
    """The cache's folder. "" is the folder that the variable MEMTX_CACHE names, or else ~/.cache/memtx.

    UserError if there is no such folder to name, or its name is not UTF-8.
    """
    path = cache or os.environ.get(VARIABLE) or "~/.cache/memtx"
    try:
        folder = absolute(path)
    except UserError as error:
        raise UserError(f"no folder for the cache: {error}, in --cache=DIR, data.cache or {VARIABLE}") from None
    check_utf8(folder, "data.cache")
    return folder


def absolute(path: str | Path) -> Path:
    """With `~` expanded. UserError if the user has no home folder."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        raise UserError(f"no home folder is known for {str(path)!r}; give a path without ~") from None


def digest(*parts: object) -> str:
    """16 hex digits that stand for JSON-able values: what tells corpora, tokenizers and their products apart."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
