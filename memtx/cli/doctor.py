"""Show the versions, the devices, the caches with their sizes, and the extras with their packages.

  memtx doctor

Put the output into a report of an error. A package that is missing is shown with the command that installs it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
from pathlib import Path
from typing import Any

from absl import flags

# For each extra of setup.py that users need: its use, and the packages that show whether it is installed.
EXTRAS = {
    "hf": ("pretrained models, chat templates", ("huggingface_hub", "gguf", "sentencepiece", "protobuf", "jinja2")),
    "report": ("reports of runs and sweeps", ("jinja2",)),
    "eval": ("BLEU, chrF and ROUGE", ("sacrebleu", "rouge-score")),
    "chat": ("memtx chat", ("starlette", "uvicorn")),
    "faiss": ("approximate search in libraries", ("faiss-cpu",)),
    "wandb": ("metrics in Weights & Biases", ("wandb",)),
    "sweep": ("sweeps on SLURM clusters", ("submitit",)),
    "gcs": ("workdirs such as gs://bucket/run", ("gcsfs", "google-cloud-storage")),
    "plan": ("compilation for TPUs that are not here", ("libtpu",)),
    "tpu": ("JAX for TPUs", ("libtpu",)),
    "cuda": ("JAX for GPUs of NVIDIA", ("jax-cuda13-plugin",)),
    "docs": ("the documentation site", ("mkdocs", "mkdocs-material", "mkdocstrings")),
}


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""
    flags.DEFINE_enum("format", "text", ["text", "json"], "How to print the result.", flag_values=values)


def act(values) -> None:
    """Print the examination. Raises UserError if there is no folder for the cache."""
    found = examine()
    print(json.dumps(found, indent=2) if values["format"].value == "json" else text(found))


def examine() -> dict[str, Any]:
    """Return the versions, the machine, the cache in bytes, and the missing packages of each extra, as JSON values."""
    from memtx.files.cache import root
    from memtx.training.provenance import machine, versions

    try:
        here = machine()
    except RuntimeError as error:  # a driver that does not work
        here = {"devices": 0, "error": " ".join(str(error).split())}
    folder = root("")
    return {
        "versions": versions(),
        "machine": here,
        "cache": {
            "folder": str(folder),
            "writable": os.access(_existing(folder), os.W_OK),
            "free": shutil.disk_usage(_existing(folder)).free,
            "bytes": {path.name: size(path) for path in sorted(folder.glob("*")) if path.is_dir()},
        },
        "extras": {name: [each for each in packages if not _is_installed(each)] for name, (_, packages) in EXTRAS.items()},
    }


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder. Files that other processes delete meanwhile do not count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except OSError:
                continue
    return total


def text(found: dict[str, Any]) -> str:
    """Return the result of `examine` as lines."""
    cache = found["cache"]
    machine = {key: ", ".join(value) if isinstance(value, list) else value for key, value in found["machine"].items()}
    lines = _group("versions", found["versions"]) + _group("machine", machine)
    about = {"folder": cache["folder"], "writable": "yes" if cache["writable"] else "no; set --cache=DIR or MEMTX_CACHE"}
    about |= {"free": _shown(cache["free"])} | {name: _shown(count) for name, count in cache["bytes"].items()}
    lines += [*_group("cache", about), "extras"]
    for name, missing in found["extras"].items():
        state = f"lacks {', '.join(missing)}: pip install '.[{name}]'" if missing else "installed"
        lines.append(f"  {name:18}{EXTRAS[name][0]}; {state}")
    return "\n".join(lines)


def _group(title: str, values: dict[str, Any]) -> list[str]:
    return [title, *(f"  {key:18}{value}" for key, value in values.items())]


def _shown(count: int) -> str:
    """Return a number of bytes in MiB, or in GiB if there are many."""
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest folder above it that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
