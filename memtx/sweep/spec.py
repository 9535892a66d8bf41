"""Sweep files. A sweep file sets `config` and defines `sweep()`, which yields the overrides of each run.

config = "configs/lm.py:size=tiny"          the base of all runs
common = {"train.steps": 600}               optional: overrides of all runs
def sweep(): ...                            yields dicts of dotted keys of the config, and
                                                config     replaces the base: "configs/lm.py:memory=xl"
                                                match      a budget to meet: {"params": 1e6}, see memtx.runs.plan
                                                solve      the key that is solved for the budget (default: the width)
def run(config, workdir) -> dict: ...       optional: measures more after training. Its dict is merged into the result
train = False                               optional: skips training, so that only `run` is called

All runs are checked before the first one starts.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from memtx.config import Config, to_json
from memtx.errors import UserError
from memtx.fields import plain
from memtx.memory.registry import registered_name
from memtx.runs.configure import configure, load_config, override
from memtx.runs.plan import check_target
from memtx.training.workdir import differences

RESERVED = ("config", "match", "solve")
# Keys that do not change the result.
UNREAD = ("train.log_every", "train.csv", "train.wandb", "checkpoint", "mesh", "data.cache", "data.task.cache")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    name         the name of its folder
    spec         the config file with its argument
    values       the config with the overrides
    match, solve the budget to meet and the key to solve for
    """

    name: str
    overrides: dict[str, Any]
    spec: str
    values: dict[str, Any]
    match: dict[str, float]
    solve: str

    @property
    def config(self) -> Config:
        """The complete config, before solving for a budget."""
        return configure(self.values)

    def is_of(self, config: Mapping, solved: Mapping[str, int]) -> bool:
        """Return whether `config` is the config of this run with the keys of `solved`, ignoring UNREAD."""
        planned = override(ml_collections.ConfigDict(self.values), solved)
        return not differences(config, to_json(configure(planned)), free=UNREAD)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings which arrange tables: the config file's arguments, the budget and the overrides."""
        own = {key: value for key, value in self.overrides.items() if key not in RESERVED}
        given = {key: registered_name(value) for key, value in _argument(self.spec).items()}
        return given | {name: str(value) for name, value in self.match.items()} | own


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep file: its runs by name in order, `run` of the file as `measure`, and `train` of the file as `trains`."""

    path: Path
    config: str
    runs: dict[str, Run]
    measure: Callable[[Config, Path], Mapping] | None
    trains: bool
    module: ModuleType  # the file itself, from which memtx.reports reads its declarations


def load_sweep(path: str | Path) -> Sweep:
    """Read a sweep file and check all its runs. Raises UserError, which names the run, if one has a mistake."""
    module = _module(Path(path))
    config: str | None = getattr(module, "config", None)
    sweep: Callable[[], Iterable[Any]] | None = getattr(module, "sweep", None)
    if not isinstance(config, str) or sweep is None or not callable(sweep):
        raise UserError(f"{path} is not a sweep file: it needs config = 'configs/lm.py:...' and def sweep()")
    runs: dict[str, Run] = {}
    common = getattr(module, "common", {})
    for overrides in sweep():
        run = _run(config, common, overrides)
        if run.name in runs:
            raise UserError(f"{path} yields the run {run.name} twice")
        runs[run.name] = run
    if not runs:
        raise UserError(f"{path} has no runs: sweep() yields nothing")
    measure, trains = getattr(module, "run", None), bool(getattr(module, "train", True))
    if not trains and measure is None:
        raise UserError(f"{path} has train = False and no run(config, workdir): there is nothing to do")
    return Sweep(Path(path), config, runs, measure, trains, module)


def _run(base: str, common: Mapping[str, Any], overrides: Any) -> Run:
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise UserError(f"sweep() must yield dicts of dotted overrides, not {overrides!r}")
    overrides = plain(overrides)
    try:
        spec = str(overrides.get("config", base))
        given = {**plain(common), **overrides}
        config = override(load_config(spec), {key: value for key, value in given.items() if key not in RESERVED})
        match, solve = dict(given.get("match", {})), given.get("solve", "")
        values = config.to_dict()
        configure(values)
        check_target(values, match, solve)
        name = _name(base, spec, overrides)
    except (UserError, TypeError) as error:
        raise UserError(f"run {overrides}: {error}") from None
    return Run(name, overrides, spec, values, match, solve)


def _name(base: str, spec: str, overrides: Mapping[str, Any]) -> str:
    """Return a readable name that is unique to these overrides."""
    given = _argument(base) if spec.partition(":")[0] == base.partition(":")[0] else {}
    words = {key: value for key, value in _argument(spec).items() if given.get(key) != value}
    words |= overrides.get("match", {})
    for key, value in overrides.items():
        last = key.rpartition(".")[2]
        words |= {} if key in RESERVED else {key if last in words else last: value}
    text = re.sub(r"[^\w.=+-]+", "-", "_".join(f"{key}={value}" for key, value in words.items())).strip("-")
    digest = hashlib.sha256(json.dumps(overrides, sort_keys=True).encode()).hexdigest()[:6]
    return f"{text[:80]}_{digest}".lstrip("_.")


def _argument(spec: str) -> dict[str, str]:
    """Return the key=value pairs after a config file's colon."""
    parts = (part.partition("=") for part in spec.partition(":")[2].split(",") if part)
    return {key: value for key, _, value in parts}


def _module(path: Path):
    """Import the file as a module. It can import other files in its folder."""
    if not path.is_file():
        raise UserError(f"no sweep file {str(path)!r}")
    spec = importlib.util.spec_from_file_location("memtx_sweep_file", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    if (beside := str(path.parent.absolute())) not in sys.path:
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"cannot read the sweep file: {error}") from None
    return module
