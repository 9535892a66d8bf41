"""Budgets: what a model costs, and the width at which it costs as much as another.

Nothing is trained or computed here: sizes come from shapes, floating-point operations from the program.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from memtx.config import Config, configure
from memtx.core import state_bytes
from memtx.errors import UserError, check_known
from memtx.models.cost import flops_per_token
from memtx.models.lm import build
from memtx.runs.source import source

FEED_FORWARD_UNIT = 8
LARGEST = 2**40  # of a solved key; a budget that is not met below it never will be


@dataclasses.dataclass(frozen=True)
class Budget:
    """params: all of them. flops_per_token: forward, in calls of data.segment tokens. state_bytes: of one stream."""

    params: int
    flops_per_token: int
    state_bytes: int


COSTS: dict[str, Callable] = {
    "params": lambda lm, config: lm.num_params(),
    "flops_per_token": lambda lm, config: flops_per_token(lm, config.data.segment),
    "state_bytes": lambda lm, config: state_bytes(lm),
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """config: with the solved keys. solved: them by dotted name. budget: what it then costs."""

    config: Config
    solved: dict[str, int]
    budget: Budget


def budget(config: Config, vocab_size: int) -> Budget:
    lm = build(config.model, vocab_size=vocab_size)
    return Budget(**{name: cost(lm, config) for name, cost in COSTS.items()})


def plan(values: Mapping[str, Any], match: Mapping[str, float], solve: str = "") -> Plan:
    """The config whose cost is nearest to the target, such as {"params": 1e6}; with no target, the config as it is.

    values: of a config file, `ConfigDict.to_dict()`. solve: the dotted key that is solved for, an integer. "": the width (in
    multiples of what the heads need, the feed-forward with it), then the feed-forward's width alone for what is left.
    Raises UserError if nothing meets the target.
    """
    check_target(values, match, solve)
    values = copy.deepcopy(dict(values))
    config = configure(values)
    vocab_size = config.model.vocab_size or source(config).tokenizer.vocab_size
    solved: dict[str, int] = {}
    for name, target in match.items():
        units = {"model.width": 2 * config.model.num_heads, "model.ff_dim": FEED_FORWARD_UNIT}
        for key in [solve] if solve else units:
            values = _solve(values, key, units.get(key, 1), name, target, vocab_size)
            solved[key] = _get(_completed(values), key)
        if solve == "model.width":
            solved["model.ff_dim"] = _get(_completed(values), "model.ff_dim")
    config = configure(values)
    return Plan(config, solved, budget(config, vocab_size))


def check_target(values: Mapping[str, Any], match: Mapping[str, float], solve: str) -> None:
    """UserError if the target is none, or the key to solve for is not there or no integer."""
    for name, target in match.items():
        check_known(name, COSTS, "budget")
        if not isinstance(target, (int, float)) or not 0 < target < math.inf:
            raise UserError(f"the budget {name}={target!r} must be a finite number above 0")
    if len(match) > 1:
        raise UserError(f"one budget is matched at a time, not {' and '.join(match)}")
    if solve and not match:
        raise UserError(f"solve={solve} says what to solve for, but there is no budget to match")
    if solve and type(_get(values, solve)) is not int:
        raise UserError(f"{solve} is no integer, so it cannot be solved for")


def _solve(values: dict, key: str, unit: int, name: str, target: float, vocab_size: int) -> dict:
    """The values with `key` the multiple of `unit` whose cost is nearest to the target.

    Costs grow with the key. A number that the config refuses costs nothing if it is below the one there, which stands for
    what is too small.
    """
    start = max(1, round(_get(_completed(values), key) / unit))

    @cache
    def cost(count: int) -> float:
        try:
            config = configure(_with(values, key, count * unit))
            return COSTS[name](build(config.model, vocab_size=vocab_size), config)
        except UserError:
            if count > start:
                raise
            return 0

    if key == "model.ff_dim" and cost(start) == cost(start + 1):  # it has no part in this cost
        return values
    low, high = 0, start
    while cost(high) < target:
        low, high = high, 2 * high
        if high > LARGEST or cost(high) == cost(low) > 0:
            raise UserError(f"{key} has no influence on {name}, which stays at {cost(low):,}; solve for another key")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) < target else (low, middle)
    count = low if low and cost(low) and target - cost(low) < cost(high) - target else high
    if low == 0 and cost(high) > 1.5 * target:
        raise UserError(f"no {key} has {name}={target:,.0f}: with {high * unit} it is {cost(high):,} already")
    return _with(values, key, count * unit)


def _with(values: dict, key: str, number: int) -> dict:
    """The values with that key; a new width takes a feed-forward that is given along in proportion."""
    changed = copy.deepcopy(values)
    *path, last = key.split(".")
    group = changed
    for part in path:
        group = group[part]
    if key == "model.width" and group.get("ff_dim"):
        share = group["ff_dim"] * number / group["width"]
        group["ff_dim"] = max(1, round(share / FEED_FORWARD_UNIT)) * FEED_FORWARD_UNIT
    group[last] = number
    return changed


def _completed(values: dict) -> dict:
    """With the feed-forward's width in numbers where the config leaves it to be derived."""
    return values | {"model": values["model"] | {"ff_dim": configure(values).model.ff_dim}}


def _get(values: Mapping[str, Any], key: str) -> Any:
    group: Any = values
    for part in key.split("."):
        if not isinstance(group, Mapping):
            raise UserError(f"{key} is no key of the config")
        check_known(part, group, f"part of {key}:")
        group = group[part]
    return group
