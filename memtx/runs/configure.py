"""Conversion of config files, ConfigDicts and mappings to a checked Config and to a model."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_collections

from memtx.config import Config, Data, Model, installed_configs
from memtx.errors import UserError, check_known
from memtx.fields import fitted, plain, to_dataclass
from memtx.memory import MEMORIES
from memtx.models import lm, patterns
from memtx.models.settings import complete_model
from memtx.tasks import TASKS


def get_config(**groups) -> ml_collections.ConfigDict:
    """Return a ConfigDict of all keys with their defaults and the given changes: `get_config(train={"steps": 100})`.

    The group `memory` has the settings of each mechanism that `model` names. Raises UserError for unknown keys and names.
    """
    settings = dict(fitted(plain(groups.pop("memory", {})), Mapping, "memory"))
    defaults = to_dataclass(Config, plain(groups))
    values: dict[str, Any] = plain(defaults)
    settings |= values["model"].pop("memory")
    if values["data"]["corpus"].startswith("task:"):
        values["data"]["task"] = plain(complete_task(defaults.data).task)
    values["memory"] = {}
    model = values["model"]
    around = [model[key] for key in ("body", "encoder_body", "head")]
    for name in patterns.names([*model["stacks"], *model["encoder"]], *around):
        check_known(name, MEMORIES, "memory")
        values["memory"][name] = plain(to_dataclass(MEMORIES[name].Config, settings.get(name, {}), f"memory.{name}"))
    for name, given in {**values["memory"], values["data"]["corpus"]: values["data"]["task"]}.items():
        if taken := [key for key in given if hasattr(ml_collections.ConfigDict, key)]:
            raise UserError(f"{name} has a setting {taken[0]!r}, which no flag can set: ConfigDict has a method of that name")
    values["own"] = {name: MEMORIES.origins[name] for name in values["memory"] if name in MEMORIES.origins}
    config = ml_collections.ConfigDict(values, convert_dict=True)
    return config.lock()


def parse_arg(arg: str, **defaults: str) -> SimpleNamespace:
    """Parse the text after the colon in `--config=FILE:key=value,key=value`. Other keys have their defaults.

    Raises UserError if a part is not key=value or a key is unknown.
    """
    values = dict(defaults)
    for part in filter(None, (arg or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"{part!r} after the colon of the config file must have the form key=value")
        check_known(key, defaults, "config argument")
        values[key] = value
    return SimpleNamespace(**values)


def find_config(name: str) -> Path:
    """Return the file of a config.

    name: a path, or the name of a config in `memtx.configs`. Raises UserError if there is no such file.
    """
    if Path(name).is_file():
        return Path(name)
    files = installed_configs()
    if name not in files:
        raise UserError(f"no config file {name!r}: give a path, or one of {', '.join(sorted(files))}")
    return files[name]


def load_config(spec: str) -> ml_collections.ConfigDict:
    """Return the ConfigDict of "NAME", "NAME:key=value,..." or "path/to/file.py:key=value,..." (see `find_config`).

    Raises UserError if the file cannot be found or read, or if it rejects its arguments.
    """
    name, _, arg = spec.partition(":")
    path = find_config(name)
    module_spec = importlib.util.spec_from_file_location("memtx_config_file", path)
    assert module_spec
    assert module_spec.loader
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"cannot read the config file: {error}") from None
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} is not a config file: it needs def get_config(arg)")
    return module.get_config(arg)


def override(config: ml_collections.ConfigDict, overrides: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Set dotted keys of a config in place, and return it. Raises UserError for an unknown key, with the nearest known one."""
    for key, value in overrides.items():
        *path, last = key.split(".")
        group = config
        for i, name in enumerate(path):
            check_known(name, group, f"config group {'.'.join(path[:i])}".strip())
            group = group[name]
            if not isinstance(group, ml_collections.ConfigDict):
                raise UserError(f"{'.'.join(path[: i + 1])} is not a group of keys")
        check_known(last, group, f"key in {'.'.join(path)}" if path else "config key")
        with group.ignore_type():  # `configure` checks types with better messages
            group[last] = value
    return config


def configure(config: ml_collections.ConfigDict | Mapping | Config) -> Config:
    """Return the checked, frozen Config. Raises UserError for a value that is not valid."""
    values = plain(config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config)
    values = dict(fitted(values, Mapping, "a config"))
    memory = fitted(values.pop("memory", {}), Mapping, "memory")
    built = to_dataclass(Config, values)
    for name, origin in built.own.items():
        MEMORIES.restore(name, str(origin))
    model = complete_model(dataclasses.replace(built.model, memory={**memory, **built.model.memory}))
    built = dataclasses.replace(built, model=model, data=complete_task(built.data, model.labels))
    _check(built)
    return built


def build(config, *, vocab_size: int = 0, subwords: Sequence[bytes] = ()) -> lm.LM:
    """Build the language model of a whole config (ConfigDict, mapping or Config), or of a Model.

    vocab_size, subwords: from the tokenizer, see memtx.models.lm.build. Raises UserError for the `model` group of a ConfigDict
    alone, because the settings of its memories are in a separate group.
    """
    if not isinstance(config, Model | Config) and "model" not in config:
        raise UserError("build takes a whole config, not its group `model` alone: the settings of memories are in `memory`")
    model = config if isinstance(config, Model) else configure(config).model
    return lm.build(model, vocab_size=vocab_size, subwords=subwords)


def complete_task(data: Data, labels: tuple[str, ...] = ()) -> Data:
    """Return `data` with `data.task` as the Config of the task that `data.corpus` names.

    labels: the labels of the model. A classification task numbers its classes in the same order. Raises UserError for settings
    that the task does not have.
    """
    kind, _, name = data.corpus.partition(":")
    if kind != "task":
        if data.task or data.curriculum or data.examples:
            raise UserError("data.task, data.curriculum and data.examples are for data.corpus=task:NAME")
        return data
    cls = task_class(name).Config
    if data.tokenizer != "bytes" or data.mask:
        raise UserError("a task makes its own tokens and labels: leave data.tokenizer at bytes and data.mask at 0")
    task = data.task if isinstance(data.task, cls) else to_dataclass(cls, data.task, "data.task")
    changes: dict[str, Any] = {"cache": data.cache} if getattr(task, "cache", None) == "" else {}
    if labels and hasattr(task, "labels"):
        changes["labels"] = labels
    return dataclasses.replace(data, task=dataclasses.replace(task, **changes) if changes else task)


def with_cache(config: Config, cache: str | None) -> Config:
    """Return the config with a different cache for itself and its task. None returns the config unchanged."""
    if cache is None:
        return config
    task = config.data.task
    task = dataclasses.replace(task, cache=cache) if hasattr(task, "cache") else task
    return dataclasses.replace(config, data=dataclasses.replace(config.data, cache=cache, task=task))


def task_class(name: str):
    """Return the class of a task. Raises UserError for an unknown name."""
    check_known(name, TASKS, "task")
    return TASKS[name]


def _check(config: Config) -> None:
    if config.data.document_tokens == 1:
        raise UserError("data.document_tokens must be 0 (to keep documents whole) or at least 2, not 1")
    check_known(config.optim.name, ["adamw", "adafactor", "lion", "muon"], "optim.name")
    check_known(config.optim.schedule, ["cosine", "linear", "constant"], "optim.schedule")
    check_known(config.eval.split, ["valid", "test", "train"], "eval.split")
    if config.train.batch % config.train.accumulate:
        raise UserError(f"train.accumulate={config.train.accumulate} does not divide train.batch={config.train.batch}")
    if config.mesh.context > 1:
        _check_divided(config)


def _check_divided(config: Config) -> None:
    """Raise a UserError unless the devices of `mesh.context` can divide the texts of the model."""
    model, given = config.model, f"mesh.context={config.mesh.context} divides texts over devices"
    named = patterns.names(model.stacks + model.encoder, model.body, model.encoder_body, model.head)
    if others := [name for name in named if not MEMORIES[name].divides_time]:
        able = ", ".join(name for name, cls in MEMORIES.items() if cls.divides_time)
        raise UserError(f"{given}, which {' and '.join(others)} cannot; the memories that can are {able}")
    if model.position in ("alibi", "t5"):
        raise UserError(f"{given}, which model.position={model.position} cannot; set it to rope, learned or none")
    if config.data.segment % config.mesh.context:
        raise UserError(f"{given}: data.segment={config.data.segment} must be a multiple of it")
