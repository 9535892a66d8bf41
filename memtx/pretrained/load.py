"""Pretrained models: read their settings, load their weights, and export models in the format of Hugging Face.

A family is a module with TYPES (its names in config.json), NAMES (the table that maps tensors to parameters), `model(hf,
context)` (which converts a config.json to a Model), `config(model)` (the reverse) and `holds(model)` (whether a model belongs
to the family).
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
import safetensors.numpy
from jax import Array

from memtx.config import Model
from memtx.data import tokenizers
from memtx.data.tokenizers import Tokenizer, check_fits
from memtx.errors import UserError, brief, check_known, listed
from memtx.files.hub import find
from memtx.models.lm import LM, Params
from memtx.models.patterns import layers
from memtx.models.settings import complete_model
from memtx.pretrained import bert, gpt2, llama, sentences, t5
from memtx.pretrained.fields import texts
from memtx.pretrained.names import Names, Slot, called_there, check, find_slots, flat
from memtx.pretrained.sentences import open_weights
from memtx.pretrained.weights import Weights

FAMILIES: tuple[ModuleType, ...] = (llama, gpt2, bert, t5)
CONTEXT = 2048  # the default number of tokens that full attention keeps
HEAD = "lm_head.weight"  # the name of an untied head in every family that allows one
# the fields of Model that the user may choose for a pretrained model
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
    """Return the Model of a pretrained model, given as a folder, a .gguf file, a packaged name like "smollm2", or a hub name.

    context: the number of tokens that full attention keeps, at most the maximum of the model. changes: values for the fields of
    Model in FREE, such as output="classes". Raises UserError if the model cannot be found or is unknown, or if a field is not
    in FREE.
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
    """Return the model_type and its family. Without a model_type, it is read from `architectures`, as in LlamaForCausalLM."""
    kind, families = config.get("model_type"), {name: family for family in FAMILIES for name in family.TYPES}
    for architecture in texts(config, "architectures") if kind is None else ():
        if match := re.fullmatch(r"(\w+?)(For\w+|(LMHead|DoubleHeads|Encoder)?Model)", architecture):
            kind = match[1].lower()
    if not isinstance(kind, str) or kind not in families:
        raise UserError(f"model_type {brief(kind)} is not supported; supported: {', '.join(sorted(families))}")
    return kind, families[kind]


def _has_own_head(weights: Weights, names: Names) -> bool:
    """Return whether a checkpoint has a head that differs from its embedding, although its config ties the two.

    transformers uses such a head. Raises UserError if any other copy of the embedding differs.
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
            raise UserError(f"{weights.path}: {copy} must equal {names.embedding}, but it does not")
    return False


def prefixes(name: str, *, cache: str | Path = "") -> dict[str, str]:
    """Return the text before a source for each task of a pretrained model, such as {"summarization": "summarize: "}.

    They are in `task_specific_params` of the config.json of a T5. Raises UserError if the model cannot be found.
    """
    found = open_weights(find(name, cache)).config.get("task_specific_params")
    tasks = found.items() if isinstance(found, Mapping) else ()
    given = {task: params.get("prefix") for task, params in tasks if isinstance(params, Mapping)}
    return {str(task): prefix for task, prefix in given.items() if isinstance(prefix, str)}


# --- from a checkpoint to a model ---------------------------------------------------------------------------------------------


def load_params(lm: LM, key: Array, *, cache: str | Path = "") -> Params:
    """Return the parameters of a model, with the weights that `model.pretrained` names.

    Parameters that the weights lack, such as those of a memory, are drawn from the key. Tensors are read one by one to save
    host memory. Raises UserError, before any tensor is read, if the weights are those of a different model, or if a tensor is
    missing, unknown or of a different shape.
    """
    weights, found, called = _found(lm, cache)
    return _with_new(lm, _read(lm, found, weights, called), key)


def new_parameters(lm: LM, *, cache: str | Path = "") -> list[str]:
    """Return the paths of parameters that the pretrained weights lack, such as a head or a memory.

    Raises UserError like `load_params`.
    """
    _, found, _ = _found(lm, cache)
    theirs = {path for slot in found for path, *_ in slot.ours}
    return [path for path in flat(lm.abstract_params) if path not in theirs]


def _found(lm: LM, cache: str | Path) -> tuple[Weights, list[Slot], dict[str, str]]:
    """Return the weights of a model, the slots that they fill, and the names of their tensors."""
    name = lm.model.pretrained
    weights = open_weights(find(name, cache))
    _check_same(lm.model, _settings(weights, name, CONTEXT), name)
    names = _family(weights.config)[1].NAMES
    found, called = check(find_slots(names, lm), names, weights.shapes, str(weights.path))
    return weights, found, called


def _read(lm: LM, found: list[Slot], weights: Weights, called: Mapping[str, str]) -> dict[str, Array]:
    shapes, values = flat(lm.abstract_params), {}
    for slot in found:
        for path, group, part in slot.to_ours(weights.read(called[slot.theirs])):
            if path not in values:
                values[path] = _aligned(shapes[path].shape)
            values[path][... if group is None else group] = part
    return {path: jax.device_put(values.pop(path)) for path in list(values)}


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """Return an empty float32 array that is aligned to 64 bytes, so that JAX uses it on a CPU without a copy."""
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
            f"{name} is a different model: {listed(different, separator='; ')}; "
            f"start from memtx.pretrained.load.settings({name!r})"
        )


# --- from a model to a checkpoint ---------------------------------------------------------------------------------------------


def export(
    lm: LM,
    params: Params,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: str = "float32",
    shard: int = 4 << 30,
) -> None:
    """Write a folder that Hugging Face's `from_pretrained` and `memtx.load` can load: config.json, safetensors and a tokenizer.

    A sentence encoder also gets the modules of sentence-transformers.

    tokenizer: None writes the tokenizer of the pretrained model from which `lm` was built, if its files still exist.
    dtype: the dtype of the stored weights. shard: the largest size of a weights file in bytes.

    Raises UserError if the family in Hugging Face lacks a part of this model, if the folder exists, or if the tokenizer does
    not fit the model.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder} exists; choose another folder")
    family = next((family for family in FAMILIES if family.holds(lm.model)), None)
    if not family:
        raise UserError(
            f"this model does not belong to a Hugging Face family; supported: {', '.join(t for f in FAMILIES for t in f.TYPES)}"
        )
    config = family.config(lm.model) | {"torch_dtype": dtype}
    found = find_slots(family.NAMES, lm)
    theirs = dataclasses.replace(family.model(config, CONTEXT), projections=lm.model.projections)
    _check_whole(lm, found, complete_model(theirs), config["model_type"])
    tokenizer = tokenizer or _own_tokenizer(lm.model)
    if tokenizer:
        check_fits(tokenizer, lm.model.vocab_size)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    dense = [slot for slot in found if slot.theirs.startswith(sentences.DENSE)]
    values, save = flat(params), partial(safetensors.numpy.save_file, metadata={"format": "pt"})
    _write_weights([slot for slot in found if slot not in dense], values, part, save, dtype, shard)
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


def _write_weights(found: list[Slot], values, folder: Path, save: Callable, dtype: str, shard: int) -> None:
    shards, index = _shards(found, np.dtype(dtype).itemsize, shard), {}
    for i, group in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        tensors = _tensors(group, values, dtype)
        save(tensors, folder / file)
        index |= dict.fromkeys(tensors, file)
    if len(shards) > 1:
        total = {"total_size": np.dtype(dtype).itemsize * sum(leaf.size for leaf in values.values())}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": total, "weight_map": index}, indent=2))


def _tensors(found: list[Slot], values: Mapping[str, Array], dtype: str) -> dict[str, np.ndarray]:
    return {slot.theirs: slot.to_theirs(values).astype(dtype) for slot in found}


def _check_whole(lm: LM, found: list[Slot], theirs: Model, kind: str) -> None:
    """Raise UserError if Hugging Face would load a different model from the exported folder."""
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
    covered = {path for slot in found for path, *_ in slot.ours}
    lost += [path for path in flat(lm.abstract_params) if path not in covered]
    if lost:
        raise UserError(f"Hugging Face's {kind} has no counterpart of {listed(lost)}")


def _shards(found: list[Slot], itemsize: int, limit: int) -> list[list[Slot]]:
    """Split the slots, in order, into shards of at most `limit` bytes, or of one slot if it is larger."""
    shards, size = [[]], 0
    for slot in found:
        own = itemsize * int(np.prod(slot.shape))
        if shards[-1] and size + own > limit:
            shards.append([])
            size = 0
        shards[-1].append(slot)
        size += own
    return shards
