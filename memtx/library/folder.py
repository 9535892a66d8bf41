"""The folder of a library.

    library.json                  the settings, written once, which mark the folder as a library
    record.jsonl                  the record. A change of the library is the atomic replacement of this file
    entries/SHA256.safetensors    the entries of a document, or the state of a namespace, named by the digest of the content
    reads.json                    how often each entry was recalled

A change first adds files to entries/, then replaces the record, then deletes the files that the record no longer names. A
process that is killed at any moment leaves the old or the new record. The next change deletes the remains.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from filelock import FileLock, Timeout

from memtx.errors import UserError
from memtx.files.atomic import write_atomic
from memtx.library.record import Record, Settings, load_record, load_settings, sha256

SETTINGS, RECORD, ENTRIES, READS, LOCK = "library.json", "record.jsonl", "entries", "reads.json", ".lock"
WAIT = 10.0  # seconds for which a change waits for one by another process
Arrays = dict[str, np.ndarray]


class Folder:
    """A library on disk."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = FileLock(path / LOCK)

    def create(self, settings: Settings) -> None:
        """Create an empty library. Raises UserError if the folder is not empty or cannot be written."""
        if (self.path / SETTINGS).exists():
            raise UserError(f"{self.path} is a library already; open it, or choose another folder")
        if self.path.exists() and (not self.path.is_dir() or {p.name for p in self.path.iterdir()} - {RECORD, ENTRIES, LOCK}):
            raise UserError(f"{self.path} has other files; choose another folder for the library")
        with self._disk_errors():
            (self.path / ENTRIES).mkdir(parents=True, exist_ok=True)
            write_atomic(self.path / RECORD, Record().dumps())
            write_atomic(self.path / SETTINGS, settings.dumps())

    def settings(self) -> Settings:
        """Return the settings. Raises UserError if the folder is not a library, or is damaged."""
        path = self.path / SETTINGS
        if not path.is_file():
            raise UserError(f"{self.path} is not a library (it has no {SETTINGS}); memtx memory read --model=MODEL creates one")
        return self._parsed(path, load_settings)

    def record(self) -> Record:
        """Return the newest record. Raises UserError if it is damaged."""
        return self._parsed(self.path / RECORD, load_record)

    def stamp(self) -> tuple[int, ...]:
        """Return numbers that change when the record is replaced."""
        with self._disk_errors():
            found = (self.path / RECORD).stat()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self, digest: str) -> Arrays:
        """Return the arrays in a file of entries. Raises UserError if it is missing or a byte has changed."""
        try:
            content = self.file(digest).read_bytes()
        except OSError as error:
            raise UserError(f"{self.path} is damaged: {ENTRIES}/{digest[:12]}... cannot be read ({error.strerror})") from error
        if sha256(content) != digest:
            raise UserError(f"{self.path} is damaged: the content of {ENTRIES}/{digest[:12]}... has changed")
        return unpacked(content)

    def file(self, digest: str) -> Path:
        """Return the path of a file of entries."""
        return self.path / ENTRIES / f"{digest}.safetensors"

    def stored(self) -> set[str]:
        """Return the digests of all files of entries, including those that the record no longer names."""
        return {path.stem for path in (self.path / ENTRIES).glob("*.safetensors")}

    def counts(self) -> dict[str, dict[str, int]]:
        """Return how often each entry was recalled, by document id and position. A damaged file counts nothing."""
        try:
            return dict(json.loads((self.path / READS).read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def write_counts(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Replace the counts. The caller has locked the library."""
        with self._disk_errors():
            write_atomic(self.path / READS, json.dumps(counts))

    @contextmanager
    def changing(self, wait: float | None = None) -> Iterator[None]:
        """Lock the library for a change. Raises UserError if another process still changes it after `wait` (WAIT) seconds."""
        with self._disk_errors():
            try:
                self._lock.acquire(timeout=WAIT if wait is None else wait)
            except Timeout:
                raise UserError(f"{self.path} is in use: another process changes it; try again later") from None
        try:
            yield
        finally:
            self._lock.release()

    def commit(self, record: Record, new: Mapping[str, bytes]) -> None:
        """Replace the record after writing the new files, by digest. The caller has locked the library.

        Raises UserError if the disk is full or the folder cannot be written. The library is then unchanged.
        """
        added = [self.file(digest) for digest in new if not self.file(digest).exists()]
        try:
            with self._disk_errors():
                for path in added:
                    write_atomic(path, new[path.stem])
                _sync(self.path / ENTRIES)
                write_atomic(self.path / RECORD, record.dumps())
                _sync(self.path)
        finally:  # the record is now the old or the new one
            self.sweep(self.record())

    def clean(self) -> None:
        """Delete the remains of a process that was killed, unless a process is changing the library or it cannot be written."""
        if self.stored() - self.record().files() or self._parts():
            with suppress(UserError), self.changing(wait=0):
                self.sweep(self.record())

    def sweep(self, record: Record) -> None:
        """Delete whatever belongs to no document of the record. The caller has locked the library."""
        counts, ids = self.counts(), {document.id for document in record.documents}
        if counts.keys() - ids:
            (self.path / READS).unlink(missing_ok=True)
            with suppress(UserError):  # on a full disk the counts are lost, not the documents' privacy
                self.write_counts({name: count for name, count in counts.items() if name in ids})
        for digest in self.stored() - record.files():
            self.file(digest).unlink(missing_ok=True)
        for path in self._parts():
            path.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        return [*self.path.glob("*.part"), *(self.path / ENTRIES).glob("*.part")]

    def _parsed(self, path: Path, parse):
        try:
            return parse(path.read_bytes())
        except OSError as error:
            raise UserError(f"{self.path} is damaged: {path.name} cannot be read ({error.strerror})") from error
        except UserError as error:
            raise UserError(f"{self.path} is damaged: {path.name}: {error}") from error

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"the disk is full: {self.path} is unchanged") from error
            raise UserError(f"cannot write in {self.path}: {error.strerror}") from error


def packed(arrays: Arrays) -> tuple[str, bytes]:
    """Return the content of a file with these arrays, and its digest. The same arrays give the same bytes."""
    content = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())})
    return sha256(content), content


def unpacked(content: bytes) -> Arrays:
    """Return the arrays in the content of a file. Raises UserError if it has none."""
    try:
        return safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise UserError(f"a file of entries is not safetensors ({error})") from error


def _sync(folder: Path) -> None:
    """Wait until new names in a folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
