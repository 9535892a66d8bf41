"""The provenance of a result: versions of code and packages, and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect a run's results."""
    return {"python": platform.python_version(), "memtx": _version("memtx")} | {name: _version(name) for name in PACKAGES}


def machine() -> dict:
    """Return platform, processor, available cores, memory and devices of this process, and the number of processes."""
    devices = jax.devices()
    return {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "devices": len(devices),
        "kinds": sorted({device.device_kind for device in devices}),
        "processes": jax.process_count(),
    }


@cache
def code() -> dict:
    """Return the version of memtx, the commit, and whether tracked files differ from it (None without a checkout)."""
    commit = _git("rev-parse", "HEAD")
    return {
        "version": _version("memtx"),
        "commit": commit,
        "dirty": None if commit is None else bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(*words: str) -> str | None:
    """Return the output of a git command in this file's checkout, or None if there is no checkout or git fails."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
