"""Budgets: the cost of a model, and the width at which a model has a given cost.

Nothing is trained or computed. Sizes come from shapes, and floating-point operations from the program.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from memtx.config import Config
from memtx.core import state_bytes
from memtx.errors import UserError, check_known
from memtx.models.cost import flops_per_token
from memtx.models.lm import build
from memtx.runs.configure import configure
from memtx.runs.source import make_source

FEED_FORWARD_UNIT = 8
LARGEST = 2**40  # the largest value of a solved key that is tried


@dataclasses.dataclass(frozen=True)
class Budget:
    """The cost of a model.

    params: the number of parameters. flops_per_token: the FLOPs of the forward pass, in calls of data.segment tokens.
    state_bytes: the bytes of the state of one stream.
    """

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
    """A config that meets a budget, the values of the solved keys by dotted name, and the cost of the config.

    vocab_size: that of the model, from the config or from its tokenizer.
    """

    config: Config
    solved: dict[str, int]
    budget: Budget
    vocab_size: int


def budget(config: Config, vocab_size: int) -> Budget:
    """Return the cost of a config's model."""
    lm = build(config.model, vocab_size=vocab_size)
    return Budget(**{name: cost(lm, config) for name, cost in COSTS.items()})


def make_plan(values: Mapping[str, Any], match: Mapping[str, float], solve: str = "") -> Plan:
    """Find the config with the cost nearest to the target, such as {"params": 1e6}.

    values: the values of a config file, from `ConfigDict.to_dict()`.

    match: the target. Without one, the config stays as it is.

    solve: the dotted key to solve for, an integer. "" solves for the width (in multiples that the heads allow, with the
    feed-forward width in proportion), and then for the feed-forward width alone.

    Raises UserError if nothing meets the target.
    """
    check_target(values, match, solve)
    values = copy.deepcopy(dict(values))
    config = configure(values)
    vocab_size = config.model.vocab_size or make_source(config).tokenizer.vocab_size
    solved: dict[str, int] = {}
    for name, target in match.items():
        units = {"model.width": 2 * config.model.num_heads, "model.ff_dim": FEED_FORWARD_UNIT}
        for key in [solve] if solve else units:
            values = _solve(values, key, units.get(key, 1), name, target, vocab_size)
            solved[key] = get_key(_derive_ff_dim(values), key)
        if solve == "model.width":
            solved["model.ff_dim"] = get_key(_derive_ff_dim(values), "model.ff_dim")
    config = configure(values)
    return Plan(config, solved, budget(config, vocab_size), vocab_size)


def check_target(values: Mapping[str, Any], match: Mapping[str, float], solve: str) -> None:
    """Raise a UserError if the target is not one known budget above 0, or `solve` is not an integer key of the config."""
    for name, target in match.items():
        check_known(name, COSTS, "budget")
        if not isinstance(target, (int, float)) or not 0 < target < math.inf:
            raise UserError(f"the budget {name}={target!r} must be a finite number above 0")
    if len(match) > 1:
        raise UserError(f"only one budget can be matched at a time, not {' and '.join(match)}")
    if solve and not match:
        raise UserError(f"solve={solve} needs a budget to match")
    if solve and type(get_key(values, solve)) is not int:
        raise UserError(f"{solve} is not an integer, so no budget can determine it")


def _solve(values: dict, key: str, unit: int, name: str, target: float, vocab_size: int) -> dict:
    """Return the values with `key` set to the multiple of `unit` whose cost is nearest to the target.

    Costs grow with the key. A smaller value that the config rejects counts as cost 0.
    """
    start = max(1, round(get_key(_derive_ff_dim(values), key) / unit))

    @cache
    def cost(count: int) -> float:
        try:
            config = configure(set_key(values, key, count * unit))
            return COSTS[name](build(config.model, vocab_size=vocab_size), config)
        except UserError:
            if count > start:
                raise
            return 0

    if key == "model.ff_dim" and cost(start) == cost(start + 1):  # it does not affect this cost
        return values
    low, high = 0, start
    while cost(high) < target:
        low, high = high, 2 * high
        if high > LARGEST or cost(high) == cost(low) > 0:
            raise UserError(f"{key} does not change {name}, which stays at {cost(low):,}; solve for another key")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) < target else (low, middle)
    count = low if low and cost(low) and target - cost(low) < cost(high) - target else high
    if low == 0 and cost(high) > 1.5 * target:
        raise UserError(f"no {key} meets {name}={target:,.0f}; its smallest value, {high * unit}, already costs {cost(high):,}")
    return set_key(values, key, count * unit)


def set_key(values: dict, key: str, number: int) -> dict:
    """Return the values with `key` set. A new width changes a given feed-forward width in proportion."""
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


def _derive_ff_dim(values: dict) -> dict:
    """Return the values with a number as the feed-forward width, if the config derives it."""
    return values | {"model": values["model"] | {"ff_dim": configure(values).model.ff_dim}}


def get_key(values: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key. Raises UserError if there is no such key."""
    group: Any = values
    for part in key.split("."):
        if not isinstance(group, Mapping):
            raise UserError(f"{key} is not a key of the config")
        check_known(part, group, f"part of {key}:")
        group = group[part]
    return group
