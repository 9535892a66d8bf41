"""`memtx list`."""

from __future__ import annotations

import json

from absl import flags
from rich.console import Console

HELP = """\
  memtx list      the memories: kind of state, bytes per stream, cost per token
      --format=table|json             --memory=NAME: one mechanism's settings and card
"""


def define(values):
    flags.DEFINE_enum("format", "table", ["table", "json"], "", flag_values=values)
    flags.DEFINE_string("memory", "", "", flag_values=values)


def act(values):
    from memtx.cli.listing import details, listing, table

    if values["memory"].value:
        print(details(values["memory"].value), end="")
    elif values["format"].value == "json":
        print(json.dumps(listing(), indent=2))
    else:
        Console().print(table(listing()))
