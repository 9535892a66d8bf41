"""Pretrained models: their settings, their weights in a model of ours, and ours written as Hugging Face has them.

A family is a module with TYPES (its names in config.json), NAMES (which tensor is which parameter), `model(hf, context)`
(our settings), `config(model)` (theirs) and `holds(model)` (whether a model is one of the family).
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax import Array

from memtx.config import Model
from memtx.data import tokenizers
from memtx.data.tokenizers import Tokenizer, check_fits
from memtx.errors import UserError, brief, check_known, listed, optional
from memtx.files.hub import find
from memtx.models.lm import LM, Params
from memtx.models.patterns import layers
from memtx.models.settings import complete_model
from memtx.pretrained import bert, gpt2, llama, sentences, t5
from memtx.pretrained.fields import texts
from memtx.pretrained.names import Names, Place, called_there, check, flat, places
from memtx.pretrained.sentences import open_weights
from memtx.pretrained.weights import Weights

FAMILIES: tuple[ModuleType, ...] = (llama, gpt2, bert, t5)
CONTEXT = 2048  # tokens that full attention keeps, unless it is told otherwise
HEAD = "lm_head.weight"  # the name of a head in every family that can have its own
# what the user chooses of a Model
FREE = (
    "stacks",
    "body",
    "encoder_body",
    "memory",
    "closed",
    "head",
    "output",
    "pool",
    "unit",
    "max_tokens",
    "lower_case",
    "classes",
    "labels",
    "pretrained",
    "dropout",
    "dtype",
    "remat",
    "scan",
)


def settings(name: str, *, context: int = CONTEXT, cache: str | Path = "", **changes) -> Model:
    """The Model of a pretrained model: a folder, a .gguf file, "smollm2" and the like, or a name of the hub.

    context: tokens that full attention keeps, at most those that the model was made for. changes: other values for those
    fields of Model that are free (FREE), such as output="classes".
    """
    for key in changes:
        check_known(key, FREE, "setting of a pretrained model that can be changed")
    model = _settings(open_weights(find(name, cache)), name, context)
    if changes.get("classes", model.classes) != model.classes:
        changes = {"labels": (), **changes}
    return complete_model(dataclasses.replace(model, **changes))


def _settings(weights: Weights, name: str, context: int) -> Model:
    try:
        kind, family = _family(weights.config)
        model = family.model({**weights.config, "model_type": kind}, context)
        model = complete_model(dataclasses.replace(model, **weights.config.get("sentences", {})))
    except UserError as error:
        raise UserError(f"the config of {weights.path}: {error}") from None
    tied = model.tied and not _has_own_head(weights, family.NAMES)
    return dataclasses.replace(model, pretrained=name, tied=tied)


def _family(config: Mapping[str, Any]) -> tuple[str, ModuleType]:
    """The model_type and its family. A config without it names it in `architectures`, as LlamaForCausalLM does."""
    kind, families = config.get("model_type"), {name: family for family in FAMILIES for name in family.TYPES}
    for architecture in texts(config, "architectures") if kind is None else ():
        if match := re.fullmatch(r"(\w+?)(For\w+|(LMHead|DoubleHeads|Encoder)?Model)", architecture):
            kind = match[1].lower()
    if not isinstance(kind, str) or kind not in families:
        raise UserError(f"it holds a {brief(kind)}, which memtx does not know; known: {', '.join(sorted(families))}")
    return kind, families[kind]


def _has_own_head(weights: Weights, names: Names) -> bool:
    """Whether a checkpoint has a head that differs from its embedding, though its config says that the two are tied.

    transformers uses that head then. UserError if another copy of the embedding differs.
    """
    called = called_there(names, weights.shapes)
    copies = [name for name in called if re.search(names.copies, name)]
    if names.embedding not in called:
        return False
    embedding = called[names.embedding]
    for copy in copies:
        same = weights.shapes[called[copy]] == weights.shapes[embedding]
        if not same or not np.array_equal(weights.read(called[copy]), weights.read(embedding)):
            if copy == HEAD:
                return True
            raise UserError(f"{weights.path}: {copy} should be the same as {names.embedding}, and is not")
    return False


# --- from theirs to ours ------------------------------------------------------------------------------------------------------


def load_params(lm: LM, key: Array, *, cache: str | Path = "") -> Params:
    """Parameters of a model whose `pretrained` names the weights; what those do not have (a memory) is drawn from the key.

    Tensors are read one by one, so that hardly more than the weights is in host memory. UserError, before any tensor is
    read, if the model is not theirs or a tensor is missing, unknown or of another shape.
    """
    weights, found, called = _found(lm, cache)
    return _with_new(lm, _read(lm, found, weights, called), key)


def new_parameters(lm: LM, *, cache: str | Path = "") -> list[str]:
    """The paths of those that the pretrained weights do not have: a head, a memory. UserError as `load_params`."""
    _, found, _ = _found(lm, cache)
    theirs = {path for place in found for path, *_ in place.ours}
    return [path for path in flat(lm.abstract_params) if path not in theirs]


def _found(lm: LM, cache: str | Path) -> tuple[Weights, list[Place], dict[str, str]]:
    """The weights of a model, the places that they fill, and what they call those."""
    name = lm.model.pretrained
    weights = open_weights(find(name, cache))
    _check_same(lm.model, _settings(weights, name, CONTEXT), name)
    names = _family(weights.config)[1].NAMES
    found, called = check(places(names, lm), names, weights.shapes, str(weights.path))
    return weights, found, called


def _read(lm: LM, found: list[Place], weights: Weights, called: Mapping[str, str]) -> dict[str, Array]:
    shapes, values = flat(lm.abstract_params), {}
    for place in found:
        for path, group, part in place.to_ours([weights.read(called[name]) for name in place.theirs]):
            if path not in values:
                values[path] = _aligned(shapes[path].shape)
            values[path][... if group is None else group] = part
    return {path: jax.device_put(values.pop(path)) for path in list(values)}


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """An empty float32 array at a multiple of 64 bytes, which JAX takes over on a CPU without a copy."""
    size = 4 * int(np.prod(shape))
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)


def _with_new(lm: LM, values: Mapping[str, Array], key: Array) -> Params:
    shapes = flat(lm.abstract_params)
    new = [path for path in shapes if path not in values]
    if new:
        values = {**values, **jax.jit(lambda key: {path: flat(lm.init(key))[path] for path in new})(key)}
    return jax.tree.unflatten(jax.tree.structure(lm.abstract_params), [values[path] for path in shapes])


def _check_same(model: Model, theirs: Model, name: str) -> None:
    different = [
        f"model.{f.name}={getattr(model, f.name)!r} is {getattr(theirs, f.name)!r} there"
        for f in dataclasses.fields(Model)
        if f.name not in FREE and getattr(model, f.name) != getattr(theirs, f.name)
    ]
    here, there = (len(layers(m.stacks)) for m in (model, theirs))
    if here != there:
        different.append(f"model.stacks has {here} layers, {there} there")
    if different:
        raise UserError(
            f"{name} is another model: {listed(different, separator='; ')}; begin with memtx.pretrained.load.settings({name!r})"
        )


# --- from ours to theirs ------------------------------------------------------------------------------------------------------


def export(
    lm: LM,
    params: Params,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: str = "float32",
    shard: int = 4 << 30,
) -> None:
    """Write a folder that Hugging Face's `from_pretrained` and `memtx.load` load: config.json, safetensors and a tokenizer.

    tokenizer: None writes that of the pretrained model which `lm` began with, if its files are still there, and else none.
    shard: bytes of a file of weights, at most. A sentence encoder gets the modules of sentence-transformers too. UserError if
    their model of this family has no place for something, the folder is there, or the tokenizer is another model's.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} is there already; choose another folder")
    family = next((family for family in FAMILIES if family.holds(lm.model)), None)
    if not family:
        raise UserError(
            f"no family of Hugging Face's holds this model; memtx knows {', '.join(t for f in FAMILIES for t in f.TYPES)}"
        )
    config = family.config(lm.model) | {"torch_dtype": dtype}
    found = places(family.NAMES, lm)
    theirs = dataclasses.replace(family.model(config, CONTEXT), projections=lm.model.projections)
    _check_whole(lm, found, complete_model(theirs), config["model_type"])
    tokenizer = tokenizer or _own_tokenizer(lm.model)
    if tokenizer:
        check_fits(tokenizer, lm.model.vocab_size)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    dense = [place for place in found if place.theirs[0].startswith(sentences.DENSE)]
    values, save = flat(params), partial(optional("safetensors.numpy").save_file, metadata={"format": "pt"})
    _write_weights([place for place in found if place not in dense], values, part, save, dtype, shard)
    sentences.write(lm.model, part, save, _tensors(dense, values, dtype))
    if tokenizer:
        tokenizers.write(tokenizer, part, config["model_type"])
    (part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    part.rename(folder)


def _own_tokenizer(model: Model) -> Tokenizer | None:
    try:
        return tokenizers.pretrained(find(model.pretrained, "")) if model.pretrained else None
    except UserError:
        return None


def _write_weights(found: list[Place], values, folder: Path, save: Callable, dtype: str, shard: int) -> None:
    shards, index = _shards(found, np.dtype(dtype).itemsize, shard), {}
    for i, group in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        tensors = _tensors(group, values, dtype)
        save(tensors, folder / file)
        index |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = {"total_size": np.dtype(dtype).itemsize * sum(leaf.size for leaf in values.values())}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": total, "weight_map": index}, indent=2))


def _tensors(found: list[Place], values: Mapping[str, Array], dtype: str) -> dict[str, np.ndarray]:
    return {name: tensor.astype(dtype) for place in found for name, tensor in place.to_theirs(values)}


def _check_whole(lm: LM, found: list[Place], theirs: Model, kind: str) -> None:
    """UserError if what they would load is not this model."""
    entries = zip(layers(lm.model.stacks), layers(theirs.stacks), strict=True)
    lost = [f"{ours} (layer {i})" for i, (ours, plain) in enumerate(entries) if ours != plain]
    lost += [f"model.{key}={getattr(lm.model, key)}" for key in ("body", "encoder_body", "head") if getattr(lm.model, key)]
    lost += [
        f"model.{f.name}={getattr(lm.model, f.name)!r}"
        for f in dataclasses.fields(Model)
        if f.name not in FREE and getattr(lm.model, f.name) != getattr(theirs, f.name)
    ]
    pools = {"classes": lm.model.pool == "cls", "pooled": lm.model.pool != "document"}
    lost += [] if pools.get(lm.model.output, True) else [f"model.pool={lm.model.pool}"]
    covered = {path for place in found for path, *_ in place.ours}
    lost += [path for path in flat(lm.abstract_params) if path not in covered]
    if lost:
        raise UserError(f"Hugging Face's {kind} has no place for {listed(lost)}")


def _shards(found: list[Place], itemsize: int, limit: int) -> list[list[Place]]:
    """Places in order, cut so that each shard has `limit` bytes at most (or one place)."""
    shards, size = [[]], 0
    for place in found:
        own = itemsize * sum(int(np.prod(shape)) for shape in place.shapes.values())
        if shards[-1] and size + own > limit:
            shards.append([])
            size = 0
        shards[-1].append(place)
        size += own
    return shards
