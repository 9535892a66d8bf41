"""Compute the cost of a model before training: parameters, FLOPs, state, and a train step on accelerators.

  memtx plan --config=lm:memory=xl --match=params=1e6
  memtx plan --config=lm:memory=xl,size=base,data=books --topology=v5e:4x4
  memtx plan --config=lm:memory=xl,size=base,data=books --topology=h100x8 --fit=train.batch

FLOPs are those of the matrix products of a forward pass. --match finds the width at which the model has a given cost, and
prints the flags that set it. --topology estimates the train step on accelerators, which need not be there: the memory of each
device, the bytes between devices, and the time from good to poor use of the chip. --fit finds the largest value of a key with
which the step fits. --compile asks the compiler for TPUs about the same step, which takes minutes and needs the extra `plan`.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from memtx.cli.options import needed, parse_settings, plural
from memtx.errors import UserError

ESTIMATED = ("params", "optimiser", "state", "batch", "temporary", "padding", "peak")  # bytes, see memtx.runs.estimate
COMPILED = ("arguments", "temporary", "peak")  # bytes, see memtx.runs.compiled


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""
    config_flags.DEFINE_config_file("config", None, "A config file: `NAME[:key=value,...]`. Required.", flag_values=values)
    match = "The cost to match: `COST=NUMBER`, where the cost is params, flops_per_token or state_bytes."
    flags.DEFINE_string("match", None, match, flag_values=values)
    solve = "The integer `KEY` to solve for, such as memory.window.window. Default: the width and the feed-forward width."
    flags.DEFINE_string("solve", "", solve, flag_values=values)
    chips = "Estimate the train step on `CHIPS`: a TPU slice such as v5e:4x4 or v5p:2x2x2, or GPUs such as h100x8."
    flags.DEFINE_string("topology", "", chips, flag_values=values)
    fit = "Find the largest integer `KEY`, such as train.batch, with which the step fits the topology."
    flags.DEFINE_string("fit", "", fit, flag_values=values)
    flags.DEFINE_boolean("compile", False, "Compile the step for the TPUs of --topology too.", flag_values=values)
    flags.DEFINE_enum("format", "table", ["table", "json"], "How to print the result.", flag_values=values)


def act(values) -> None:
    """Print the costs and the solved keys. Raises UserError for a mistake that the user can fix."""
    from memtx.runs.plan import make_plan

    topology, key, compiles = (values[name].value for name in ("topology", "fit", "compile"))
    if (key or compiles) and not topology:
        raise UserError(f"--{'fit' if key else 'compile'} needs --topology, such as --topology=v5e:4x4")
    if compiles:
        from memtx.runs.compiled import prepare

        prepare()
    config = needed(values, "config", "configs/lm.py:memory=xl")
    match = parse_settings(values["match"].value, "match") or {}
    if key and match:
        raise UserError("give --match or --fit, not both")
    plan = make_plan(config.to_dict(), match, values["solve"].value)
    found: dict[str, Any] = {"solved": plan.solved, "budget": dataclasses.asdict(plan.budget)}
    if topology:
        plan, found["step"] = _estimate(plan, config.to_dict(), topology, key)
        found |= {"solved": plan.solved, "budget": dataclasses.asdict(plan.budget)}
    if compiles:
        found["compiled"] = _compile(plan, topology)
    if values["format"].value == "json":
        print(json.dumps(found))
        return
    console = Console(soft_wrap=True, highlight=False)
    console.print(_table(found, match))
    if topology and not found["step"]["fits"]:
        console.print(f"the step does not fit {topology}", markup=False)
    for name, number in plan.solved.items():
        console.print(f"--config.{name}={number}", markup=False)


def _estimate(plan, values: dict, topology: str, key: str):
    """Return the plan and the figures of the estimated step. key: the key to fit, or ""."""
    from memtx.runs.configure import configure
    from memtx.runs.estimate import estimate, fit
    from memtx.runs.plan import Plan, budget, set_key

    if key:
        number, step = fit(values, key, topology, vocab_size=plan.vocab_size)
        config = configure(set_key(values, key, number))
        plan = Plan(config, {key: number}, budget(config, plan.vocab_size), plan.vocab_size)
    else:
        step = estimate(plan.config, topology, vocab_size=plan.vocab_size)
    figures = {name: getattr(step, name) for name in (*ESTIMATED, "flops", "moved", "seconds", "fits", "devices")}
    return plan, figures | {"memory": step.chip.memory}


def _compile(plan, topology: str) -> dict:
    """Return the bytes of the compiled train step: COMPILED per device, and "moved" between devices by kind."""
    from memtx.runs.compiled import compile_step

    step = compile_step(plan.config, topology, vocab_size=plan.vocab_size)
    return {name: getattr(step, name) for name in COMPILED} | {"moved": step.moved}


def _table(found: dict, match: dict) -> Table:
    table = Table()
    table.add_column("cost")
    table.add_column("", justify="right")

    def sizes(figures: dict, names: tuple[str, ...], title: str) -> None:
        table.add_section()
        table.add_row(title, "")
        for name in names:
            table.add_row(f"  {name}, GiB per device", f"{figures[name] / 2**30:.2f}")
        for kind, size in figures["moved"].items():
            table.add_row(f"  {kind} between devices, MB", f"{size / 1e6:,.1f}")

    for name, amount in found["budget"].items():
        off = f"  {amount / match[name] - 1:+.1%} of {match[name]:,.0f}" if name in match else ""
        table.add_row(name, f"{amount:,}{off}")
    if step := found.get("step"):
        sizes(step, ESTIMATED, f"a train step on {plural(step['devices'], 'device')}, estimated")
        table.add_row("  memory, GiB per device", f"{step['memory'] / 2**30:.2f}")
        table.add_row("  TFLOPs per device", f"{step['flops'] / 1e12:,.2f}")
        table.add_row("  seconds", " to ".join(f"{seconds:.3g}" for seconds in step["seconds"]))
    if "compiled" in found:
        sizes(found["compiled"], COMPILED, "the same step, compiled")
    return table
