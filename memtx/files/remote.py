"""Workdirs in Google Cloud Storage, such as gs://bucket/run.

Checkpoints go straight to the bucket. Small files are written in a temporary folder of this machine and copied to the bucket.
An object of a bucket is replaced as a whole, so no file there is ever half-written. A bucket has no folders and no locks.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

from memtx.errors import UserError, optional

ADDRESS = re.compile(r"([a-z][a-z0-9]*):/(/?)(.*)", re.DOTALL)
SCHEME = "gs"
PATTERNS = "*?[]#"  # characters that gcsfs gives a meaning
WAIT = 10  # seconds that the first request to a bucket may take

os.environ.setdefault("EPATH_USE_TF", "false")  # otherwise etils.epath imports TensorFlow if it is installed


def is_remote(path: str | Path) -> bool:
    """Return whether this is an address."""
    return _parts(path) is not None


def _parts(path: str | Path) -> tuple[str, str] | None:
    """Return the scheme of an address and the rest, or None for a path. A pathlib.Path has one slash after the colon."""
    match = ADDRESS.match(str(path))
    return (match[1], match[3]) if match and (match[2] or match[1] == SCHEME) else None


def place(workdir: str | Path) -> Path:
    """Return the path of a folder: a pathlib.Path, or an etils.epath.Path for an address, whose bucket must be reachable.

    Raises UserError if the address is not valid, the bucket does not exist or cannot be read, or gcsfs is not installed.
    """
    if (parts := _parts(workdir)) is None:
        return Path(workdir)
    scheme, name = parts
    bucket, _, key = name.strip("/").partition("/")
    if scheme != SCHEME:
        raise UserError(f"{workdir} is not an address that memtx knows: give a folder or gs://BUCKET/FOLDER")
    if not bucket or not key or not name.isprintable() or {*PATTERNS} & {*name} or {".", ".."} & {*key.split("/")}:
        raise UserError(
            f"{workdir} must have the form gs://BUCKET/FOLDER, without '..' and the characters {' '.join(PATTERNS)}"
        )
    _prepare()
    _reach(bucket)
    from etils import epath

    return cast(Path, epath.Path(f"{SCHEME}://{bucket}/{key}"))


def absolute(workdir: str | Path) -> Path:
    """Return the absolute path of a folder, or the path of an address. Raises UserError like `place`."""
    path = place(workdir)
    return path if is_remote(path) else path.absolute()


def local(path: str | Path) -> Path:
    """Return the path of a folder of this machine. Raises UserError for an address."""
    if is_remote(path):
        raise UserError(f"{path} is the address of a bucket, which this command cannot use; choose a folder")
    return Path(path)


class Mirror:
    """A folder of this machine for the small files of a run.

    workdir: the workdir. If it is an address, `folder` is a temporary folder, from which `push` copies the files that changed.
    Otherwise it is the workdir, and `pull` and `push` do nothing. target: the path of the workdir. The end of a `with` block
    pushes, unless there was an error, and deletes the temporary folder.
    """

    def __init__(self, workdir: str | Path):
        self.target = place(workdir)
        self.folder = self.target
        self._temporary = None
        if is_remote(self.target):
            self._temporary = tempfile.TemporaryDirectory(prefix="memtx-run-")
            self.folder = Path(self._temporary.name) / self.target.name
            self.folder.mkdir()
        self._pushed: dict[str, tuple] = {}

    def pull(self, *names: str) -> None:
        """Copy these files here, those of them that exist."""
        if self._temporary:
            for name in names:
                try:
                    with reading(self.target):
                        content = (self.target / name).read_bytes()
                except FileNotFoundError:
                    continue
                (self.folder / name).write_bytes(content)
                self._pushed[name] = _version(self.folder / name)

    def push(self) -> None:
        """Copy the files that changed since the last copy to the address. Raises UserError if one cannot be written."""
        if self._temporary:
            for path in sorted(p for p in self.folder.rglob("*") if p.is_file() and not p.is_symlink()):
                try:
                    name, version, content = path.relative_to(self.folder).as_posix(), _version(path), path.read_bytes()
                except FileNotFoundError:  # another program deleted it meanwhile
                    continue
                if self._pushed.get(name) != version:
                    with writing(self.target):
                        _store().pipe_file(str(self.target / name), content)
                    self._pushed[name] = version

    def close(self) -> None:
        """Delete the temporary folder."""
        if self._temporary:
            self._temporary.cleanup()

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            if kind is None:  # otherwise a file may be half-written
                self.push()
        finally:
            self.close()


def _version(path: Path) -> tuple:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


# --- folders, local or remote -----------------------------------------------------------------------------------------------


def checksums(folder: Path) -> dict[str, str | None]:
    """Return the MD5 of each object below a remote folder, by its name within it.

    The bucket computes it from the bytes that it has stored. It is None for an object that was uploaded in parts.
    """
    found = _store().find(str(folder), detail=True)
    start = len(str(folder).removeprefix(f"{SCHEME}://")) + 1
    return {name[start:]: _md5(info) for name, info in found.items() if info["type"] == "file" and len(name) > start}


def _md5(info: dict) -> str | None:
    return base64.b64decode(info["md5Hash"]).hex() if "md5Hash" in info else None


def move(source: Path, target: Path) -> None:
    """Move a folder, in place of the one at the target if there is one."""
    if not is_remote(source):
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        source.rename(target)
        return
    store = _store()
    with writing(target):
        if store.exists(str(target)):
            store.rm(str(target), recursive=True)
        store.copy(str(source), str(target), recursive=True)
        store.rm(str(source), recursive=True)


@contextmanager
def writing(target: Path):
    """Turn errors of a bucket within the block into a UserError that names the target. Others pass."""
    with _requests("write in", target):
        yield


@contextmanager
def reading(target: Path):
    """Do the same for a block that reads. An object that does not exist is a FileNotFoundError, as on a disk."""
    with _requests("read", target, FileNotFoundError):
        yield


@contextmanager
def _requests(verb: str, target: Path, *passing: type[Exception]):
    try:
        yield
    except (UserError, *passing):
        raise
    except Exception as error:
        origin, text = type(error).__module__.partition(".")[0], " ".join(str(error).split())[:300]
        known = origin in ("gcsfs", "google", "aiohttp", "requests") or isinstance(error, OSError | ValueError)
        if not is_remote(target) or not (known or f"{SCHEME}://" in text):
            raise
        raise UserError(f"cannot {verb} {target}: {text or type(error).__name__}") from error


# --- the bucket -------------------------------------------------------------------------------------------------------------


@cache
def _prepare() -> None:
    """Make gcsfs ask the bucket each time. Other processes and TensorStore write there too, so old listings would be wrong."""
    optional("gcsfs", "gcs")
    optional("google.cloud.storage", "gcs")
    for name in ("gcsfs", "fsspec"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they log the traceback of each error that they raise
    from fsspec.config import conf

    for name in ("gs", "gcs"):
        conf.setdefault(name, {}).setdefault("use_listings_cache", False)


@cache
def _store() -> Any:
    """Return the file system of gcsfs, the same that etils.epath uses."""
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)


@cache
def _client() -> Any:
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud import storage

    try:
        return storage.Client()
    except DefaultCredentialsError:
        return storage.Client.create_anonymous_client()


@cache
def _reach(bucket: str) -> None:
    """Raise a UserError unless the objects of a bucket can be listed now. Later requests are repeated for minutes."""
    with _one_line(bucket):
        next(iter(_client().list_blobs(bucket, max_results=1, timeout=WAIT, retry=None)), None)


def check_writable(workdir: Path) -> None:
    """Raise a UserError unless the bucket answers the request that Orbax makes before it deletes a checkpoint."""
    bucket = str(workdir).removeprefix(f"{SCHEME}://").partition("/")[0]
    with _one_line(bucket):
        _client().get_bucket(bucket, timeout=WAIT, retry=None)


@contextmanager
def _one_line(bucket: str):
    from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, Unauthorized
    from google.auth.exceptions import GoogleAuthError
    from requests.exceptions import RequestException

    try:
        yield
    except NotFound:
        raise UserError(f"the bucket {SCHEME}://{bucket} does not exist") from None
    except (Forbidden, Unauthorized) as error:
        raise UserError(
            f"no permission for {SCHEME}://{bucket} ({_short(error)}); log in with gcloud auth application-default login. "
            "The account needs the permission storage.buckets.get and the role roles/storage.objectAdmin"
        ) from None
    except (GoogleAPIError, GoogleAuthError, RequestException, OSError) as error:
        raise UserError(f"cannot reach {SCHEME}://{bucket}: {_short(_root(error))}") from None


def _root(error: BaseException) -> BaseException:
    """Return the first error, such as a refused connection, for which others were raised in turn."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return error


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
