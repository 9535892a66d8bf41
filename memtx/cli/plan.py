"""`memtx plan`."""

from __future__ import annotations

import dataclasses
import json

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from memtx.cli.options import needed, parse_settings

HELP = """\
  memtx plan      what a model costs: parameters, FLOPs per token, bytes of state; nothing is trained
      --config=FILE[:...]             --match=params=1e6: the width that costs this; or flops_per_token, state_bytes
      --solve=memory.window.window    the key that is solved for instead of the width      --format=table|json
"""


def define(values):
    config_flags.DEFINE_config_file("config", flag_values=values)
    flags.DEFINE_string("match", None, "", flag_values=values)
    flags.DEFINE_string("solve", "", "", flag_values=values)
    flags.DEFINE_enum("format", "table", ["table", "json"], "", flag_values=values)


def act(values):
    from memtx.runs.plan import make_plan

    config = needed(values, "config", "configs/lm.py:memory=xl")
    match = parse_settings(values["match"].value, "match") or {}
    found = make_plan(config.to_dict(), match, values["solve"].value)
    cost = dataclasses.asdict(found.budget)
    if values["format"].value == "json":
        print(json.dumps({"solved": found.solved, "budget": cost}))
        return
    table = Table()
    table.add_column("cost")
    table.add_column("", justify="right")
    for name, amount in cost.items():
        off = f"  {amount / match[name] - 1:+.1%} of {match[name]:,.0f}" if name in match else ""
        table.add_row(name, f"{amount:,}{off}")
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    for key, number in found.solved.items():
        console.print(f"--config.{key}={number}", markup=False)
