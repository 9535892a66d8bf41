"""Where pretrained weights lie: a Hugging Face folder with safetensors, or a GGUF file. Read tensor by tensor, as float32.

Pickles are never read. Both kinds look alike: `config` (as a config.json has it), `shapes` by name, and `read(name)`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from memtx.errors import UserError, optional


class Weights(Protocol):
    path: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """One tensor in float32. UserError if its bytes cannot be read."""
        ...


def open_weights(path: Path) -> Weights:
    """UserError for what is neither, or damaged."""
    if path.suffix == ".gguf":
        from memtx.models.gguf import GGUF

        return GGUF(path)
    if path.is_file():
        raise UserError(f"{path} is a file: give its folder (with config.json and safetensors) or a .gguf file")
    return Safetensors(path)


class Safetensors:
    """A folder with config.json and model.safetensors, or its shards with their index."""

    def __init__(self, folder: Path):
        self.path = folder
        self._open: Callable = optional("safetensors").safe_open
        self.config = read_json(folder / "config.json")
        self._file: dict[str, Path] = {}
        self.shapes = {}
        for file in self._files():
            with self._reader(file) as reader:
                for name in reader.keys():  # noqa: SIM118
                    self._file[name] = file
                    self.shapes[name] = tuple(reader.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        with self._reader(self._file[name]) as reader:  # opened anew, so that pages that were read do not stay mapped
            return reader.get_tensor(name).astype(np.float32, copy=False)

    def _files(self) -> list[Path]:
        index, single = self.path / "model.safetensors.index.json", self.path / "model.safetensors"
        if index.is_file():
            files = [self.path / name for name in sorted(set(read_json(index)["weight_map"].values()))]
        else:
            files = [single] if single.is_file() else []
        if absent := [file.name for file in files if not file.is_file()]:
            raise UserError(f"{self.path} is not whole: {', '.join(absent)}, named by its index, is missing; download it again")
        if not files:
            pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in sorted(self.path.glob(pattern))]
            why = (
                f"only pickles ({', '.join(pickles)}), which can run code when they are read. {CONVERT}" if pickles else "none"
            )
            raise UserError(f"{self.path} should have model.safetensors, but there is {why}")
        return files

    def _reader(self, file: Path):
        try:
            return self._open(file, "numpy")
        except Exception as error:  # safetensors raises an exception of its own kind
            raise UserError(f"{file} cannot be read ({error}): it is damaged or cut short; download it again") from error


CONVERT = (
    "Convert them where you trust them, with transformers: "
    "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW, safe_serialization=True)"
)


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {path.name} in {path.parent}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
