"""List the memories: the kind of state, the bytes per stream and the cost per token.

  memtx list
  memtx list --memory=titans_mac

--memory shows the settings and the card of one mechanism. Mechanisms of installed packages are in the list too.
"""

from __future__ import annotations

import json
from importlib import resources

from absl import flags
from rich.console import Console
from rich.table import Table

from memtx.cli.catalog import find_row, read_catalog


def define(values: flags.FlagValues) -> None:
    """Define the flags of the command."""
    flags.DEFINE_enum("format", "table", ["table", "json"], "How to print the list.", flag_values=values)
    memory = "Show one mechanism: its `NAME`, or path/to/file.py:ClassName."
    flags.DEFINE_string("memory", None, memory, flag_values=values)


def act(values) -> None:
    """Print the list or one mechanism. Raises UserError for an unknown mechanism."""
    if given := values["memory"].value:
        row = find_row(given)
        print(json.dumps(row, indent=2) if values["format"].value == "json" else details(row).rstrip())
    elif values["format"].value == "json":
        print(json.dumps(read_catalog(), indent=2))
    else:
        Console().print(table(read_catalog()))


def table(rows: list[dict]) -> Table:
    """Return the table of the rows of `read_catalog`."""
    shown = Table(
        caption="the tiny model (4 layers, width 128) at default settings: state of one stream, forward pass of a token. "
        "memtx list --memory=NAME shows the settings and the card of a mechanism"
    )
    shown.add_column("name", no_wrap=True)
    shown.add_column("kind of state")
    for column in ("state bytes", "MFLOP a token"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        numbers = f"{row['state_bytes_per_stream']:,}", f"{row['flops_per_token'] / 1e6:.2f}"
        shown.add_row(row["name"], row["kind"], *numbers)
    return shown


def details(row: dict) -> str:
    """Return the costs of a mechanism, its settings with their defaults, and its card. row: from `find_row`."""
    name = row["name"]
    costs = f"{row['state_bytes_per_stream']:,} state bytes, {row['flops_per_token'] / 1e6:.2f} MFLOP a token (tiny model)"
    lines = "".join(f"  --config.memory.{name}.{key}={_literal(value)}\n" for key, value in row["settings"].items())
    card = resources.files("memtx") / "memory" / "cards" / f"{name}.yaml"  # memtx.memory itself would import JAX
    about = card.read_text(encoding="utf-8") if card.is_file() else f"about: {row['about']}\nkind: {row['kind']}\n"
    return f"costs: {costs}\nsettings:\n{lines}{about}"


def _literal(value: object) -> object:
    """Convert a value of catalog.json to the form that a flag takes. JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value
