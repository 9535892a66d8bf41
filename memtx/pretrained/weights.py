"""Files of pretrained weights: a Hugging Face folder with safetensors, or a GGUF file. memtx never reads pickles."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
import safetensors

from memtx.errors import UserError, brief, listed
from memtx.pretrained.fields import table


class Weights(Protocol):
    """The interface of all files of weights. Tensors have the names and layout of Hugging Face and are read one by one."""

    path: Path
    config: dict[str, Any]  # the content of a config.json
    shapes: dict[str, tuple[int, ...]]  # by name

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in float32. Raises UserError if its bytes cannot be read."""
        ...


def open_weights(path: Path) -> Weights:
    """Open a Hugging Face folder or a .gguf file. Raises UserError if it is neither or is damaged."""
    if path.suffix == ".gguf":
        from memtx.pretrained.gguf import GGUF

        return GGUF(path)
    if path.is_file():
        raise UserError(f"{path} is a file; give its folder (with config.json and safetensors) or a .gguf file")
    return Safetensors(path)


DTYPES = {
    "F64": jnp.dtype("float64"),
    "F32": jnp.dtype("float32"),
    "F16": jnp.dtype("float16"),
    "BF16": jnp.dtype("bfloat16"),
    "F8_E4M3": jnp.dtype("float8_e4m3fn"),
    "F8_E5M2": jnp.dtype("float8_e5m2"),
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file. start: the offset of the first byte."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


class Safetensors:
    """A folder with config.json and model.safetensors or its shards.

    Raises UserError if the folder is incomplete or damaged, or if its weights are quantised.
    """

    def __init__(self, folder: Path):
        self.path = folder
        self.config = read_json(folder / "config.json")
        self._tensors: dict[str, Stored] = {}
        files, home = model_files(folder)
        for file in files:
            for name, tensor in read_header(file).items():
                if name not in self._tensors or home.get(name) == file.name:  # some tensors are in two shards
                    self._tensors[name] = tensor
        self.shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        _check_plain(folder, self.config, self._tensors)

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in float32. NumPy reads the bytes, because safetensors gives NumPy no 8-bit floats."""
        tensor = self._tensors[name]
        if tensor.dtype not in DTYPES:
            raise UserError(f"{tensor.file}: {name} is stored as {tensor.dtype}; memtx reads {', '.join(DTYPES)}")
        found = np.fromfile(tensor.file, DTYPES[tensor.dtype], math.prod(tensor.shape), offset=tensor.start)
        return found.astype(np.float32, copy=False).reshape(tensor.shape)


def read_header(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name. Raises UserError if the file is damaged or cut short."""
    try:
        with safetensors.safe_open(file, "numpy"):  # checks the header against the size of the file
            pass
    except Exception as error:  # safetensors has a private exception class
        raise UserError(f"{file} cannot be read ({brief(error)}): it is damaged or cut short; download it again") from error
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    header.pop("__metadata__", None)
    return {
        name: Stored(file, at["dtype"], tuple(at["shape"]), 8 + length + at["data_offsets"][0]) for name, at in header.items()
    }


# --- the files of a folder ----------------------------------------------------------------------------------------------------

SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def model_files(folder: Path) -> tuple[list[Path], Mapping[str, str]]:
    """Return the safetensors files of a model, and the file of each tensor that an index lists.

    As in transformers, model.safetensors takes precedence over an index. Without either, shards are found by their names.
    Raises UserError if a file is missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single], {}
    home = _weight_map(index) if index.is_file() else {}
    names = set(home.values()) or {path.name for path in folder.glob("model-*.safetensors") if SHARD.fullmatch(path.name)}
    if not names:
        raise UserError(f"{folder} should have model.safetensors, but there is {_instead(folder)}")
    names = _whole(folder, names)
    if absent := [name for name in names if not os.path.isfile(folder / name)]:  # also False for an impossible file name
        raise UserError(f"{folder} is incomplete: {listed(absent)} is missing; download it again")
    return [folder / name for name in names], home


def _weight_map(index: Path) -> Mapping[str, str]:
    """Return {tensor: file} of an index. Raises UserError if a file is outside its folder."""
    try:
        home = table(read_json(index), "weight_map")
    except UserError as error:
        raise UserError(f"{index} is not an index of shards: {error}") from None
    for file in home.values():
        path = PurePosixPath(file) if isinstance(file, str) else None
        if path is None or path.is_absolute() or ".." in path.parts or not path.parts:
            raise UserError(f"{index} lists {brief(file)}, which is not a file inside its folder")
    if not home:
        raise UserError(f"{index} is not an index of shards: its weight_map is empty")
    return home


def _whole(folder: Path, names: Collection[str]) -> list[str]:
    """Return the file names and the names of all other shards in the same set."""
    sets = {(match[1], match[3]) for name in names if (match := SHARD.fullmatch(name))}
    if len(sets) > 1:
        found = (f"{stem}-*-of-{count}" for stem, count in sorted(sets))
        raise UserError(f"{folder} has shards of several models: {listed(found)}; remove the old ones")
    shards = {f"{stem}-{i + 1:05}-of-{count}.safetensors" for stem, count in sets for i in range(int(count))}
    return sorted({*names, *shards})


def _instead(folder: Path) -> str:
    """Return a description of the weights that a folder has in place of model.safetensors."""
    if others := sorted(path.name for path in folder.glob("*.safetensors")):
        return f"only {listed(others)}"
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    return f"only pickles ({listed(pickles)}), which can run code when they are read. {CONVERT}" if pickles else "none"


CONVERT = (
    "Convert them where you trust them, with transformers: "
    "AutoModel.from_pretrained(FOLDER).save_pretrained(NEW, safe_serialization=True)"
)


# --- quantisation -------------------------------------------------------------------------------------------------------------

QUANTISED = re.compile(
    r"\.(SCB|absmax|quant_map|quant_state\..*|qweight|qzeros|scales|g_idx|qscales|weight_packed|weight_shape"
    r"|(weight|input|activation|output)_(scale|scale_inv|scale_2|zero_point)|[kv]_scale)$"
)


def _check_plain(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> None:
    """Raise UserError if the weights are quantised, because the stored numbers then differ from the values."""
    found = [f"config.json has {key}" for key in ("quantization_config", "compression_config") if config.get(key)]
    for name, tensor in tensors.items():
        if QUANTISED.search(name) or (name.endswith("weight") and tensor.dtype not in DTYPES):
            found.append(f"{name} is stored as {tensor.dtype}")
    if found:
        raise UserError(
            f"{folder} has quantised weights, which memtx does not read; load the ones they were made from ({listed(found, 3)})"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object {...} in a JSON file. Raises UserError if the file has no object."""
    found = read_any_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path} must contain an object {{...}}, not {brief(found)}")
    return found


def read_any_json(path: Path) -> Any:
    """Return the value in a JSON file, which may start with a byte order mark. Raises UserError if the file has no value."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"no {path.name} in {path.parent}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {brief(error)}") from None
