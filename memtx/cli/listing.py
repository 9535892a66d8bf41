"""What each memory is, keeps and costs, for `memtx list`."""

from __future__ import annotations

import dataclasses
import inspect
from importlib import resources

from rich.table import Table

from memtx.core import state_bytes
from memtx.memory import MEMORIES
from memtx.models.cost import flops_per_token
from memtx.runs.configure import build, get_config
from memtx.runs.presets import preset


def listing() -> list[dict]:
    """One row a mechanism: name, site, kind of state, what a stream keeps and a token costs in a tiny model, its settings."""
    rows = []
    for name, cls in MEMORIES.items():
        lm = build(get_config(model=preset(name, "tiny")), vocab_size=264)
        rows.append(
            {
                "name": name,
                "site": cls.site,
                "kind": cls.kind,
                "state_bytes_per_stream": state_bytes(lm),
                "flops_per_token": flops_per_token(lm),
                "parameters": lm.num_params(),
                "settings": _settings(name),
                "about": (inspect.getmodule(cls).__doc__ or "").strip().splitlines()[0],
            }
        )
    return rows


def table(rows: list[dict]) -> Table:
    shown = Table(
        caption="the tiny model (4 layers, width 128) at default settings: one stream's state, a token's forward pass. "
        "memtx list --memory=NAME shows a mechanism's settings and card"
    )
    shown.add_column("name", no_wrap=True)
    shown.add_column("kind of state")
    for column in ("state bytes", "MFLOP a token"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        numbers = f"{row['state_bytes_per_stream']:,}", f"{row['flops_per_token'] / 1e6:.2f}"
        shown.add_row(row["name"], row["kind"], *numbers)
    return shown


def details(name: str) -> str:
    """A mechanism's card, after its settings and their defaults."""
    name = MEMORIES.find(name)
    settings = "".join(f"  --config.memory.{name}.{key}={value}\n" for key, value in _settings(name).items())
    card = resources.files("memtx.memory") / "cards" / f"{name}.yaml"
    return f"settings:\n{settings}" + (card.read_text(encoding="utf-8") if card.is_file() else "")


def _settings(name: str) -> dict:
    return dataclasses.asdict(MEMORIES[name].Config())
