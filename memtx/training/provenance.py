"""Where a result comes from: versions of code and packages, and the machine."""

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
    """Of Python and of the packages that decide what a run computes."""
    return {"python": platform.python_version(), "memtx": _memtx()} | {name: _version(name) for name in PACKAGES}


def machine() -> dict:
    """Of this process: system, processor, cores that it may use, memory, devices; and how many processes the run has."""
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
    """Version of memtx; of a checkout also the commit, and whether files that git knows differ from it (None elsewhere)."""
    commit = _git("rev-parse", "HEAD")
    return {
        "version": _memtx(),
        "commit": commit,
        "dirty": None if commit is None else bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _memtx() -> str:
    """Of a checkout too, which need not be installed."""
    from memtx import __version__  # here, since the package imports this module

    return __version__


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(*words: str) -> str | None:
    """What git says in the checkout that this file is in; None if it is in none."""
    root = Path(__file__).parents[1]
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
