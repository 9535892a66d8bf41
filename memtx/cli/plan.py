"""Compute the cost of a model before training: parameters, FLOPs per token and bytes of state.

  memtx plan --config=lm:memory=xl --match=params=1e6
  memtx plan --config=lm:memory=xl,size=base,data=books --topology=v5e:4x4

FLOPs are those of the matrix products of a forward pass. --match finds the width at which the model has a given cost, and
prints the flags that set it. --topology compiles the train step for a slice of TPUs, which need not be there, and prints its
memory on each device and the transfers between devices (it needs memtx[plan]).
"""

from __future__ import annotations

import dataclasses
import json

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from memtx.cli.options import needed, parse_settings

SIZES = ("peak", "arguments", "temporary")  # see memtx.runs.compiled.Compiled


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""
    config_flags.DEFINE_config_file("config", None, "A config file: `NAME[:key=value,...]`. Required.", flag_values=values)
    match = "The cost to match: `COST=NUMBER`, where the cost is params, flops_per_token or state_bytes."
    flags.DEFINE_string("match", None, match, flag_values=values)
    solve = "The integer `KEY` to solve for, such as memory.window.window. Default: the width and the feed-forward width."
    flags.DEFINE_string("solve", "", solve, flag_values=values)
    slice_ = "Compile the train step for the TPUs of `SLICE`, such as v5e:4x4, v5p:2x2x2 or v6e:16x16."
    flags.DEFINE_string("topology", "", slice_, flag_values=values)
    flags.DEFINE_enum("format", "table", ["table", "json"], "How to print the result.", flag_values=values)


def act(values) -> None:
    """Print the costs and the solved keys. Raises UserError for a mistake that the user can fix."""
    from memtx.runs.plan import make_plan

    if values["topology"].value:
        from memtx.runs.compiled import prepare

        prepare()
    config = needed(values, "config", "configs/lm.py:memory=xl")
    match = parse_settings(values["match"].value, "match") or {}
    found = make_plan(config.to_dict(), match, values["solve"].value)
    cost = dataclasses.asdict(found.budget)
    compiled = _compile(found, values["topology"].value) if values["topology"].value else {}
    if values["format"].value == "json":
        print(json.dumps({"solved": found.solved, "budget": cost} | ({"compiled": compiled} if compiled else {})))
        return
    table = Table()
    table.add_column("cost")
    table.add_column("", justify="right")
    for name, amount in cost.items():
        off = f"  {amount / match[name] - 1:+.1%} of {match[name]:,.0f}" if name in match else ""
        table.add_row(name, f"{amount:,}{off}")
    for name in SIZES if compiled else ():
        table.add_row(f"{name}, GiB per device", f"{compiled[name] / 2**30:.2f}")
    for kind, size in compiled.get("moved", {}).items():
        table.add_row(f"{kind}, MB per step", f"{size / 1e6:,.1f}")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for key, number in found.solved.items():
        console.print(f"--config.{key}={number}", markup=False)


def _compile(plan, topology: str) -> dict:
    """Return the bytes of the compiled train step: SIZES per device, and "moved" between devices by kind."""
    from memtx.runs.compiled import compile_step

    step = compile_step(plan.config, topology, vocab_size=plan.vocab_size)
    return {name: getattr(step, name) for name in SIZES} | {"moved": step.moved}
