"""The memories for `memtx list`, with their costs in a tiny model.

Computing the costs takes many seconds, so catalog.json stores them for the mechanisms that memtx contains. A test fails if the
file is stale. This command rewrites it:

    python -m memtx.cli.catalog
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("catalog.json")
GROUP = "memtx.memories"  # the entry points of packages, see memtx.memory.registry, which imports JAX


def read_catalog() -> list[dict[str, Any]]:
    """Return one row per mechanism (see `compute_row`). Rows of installed packages are computed. The others are stored."""
    rows = stored_catalog()
    if importlib.metadata.entry_points(group=GROUP):
        from memtx.memory import MEMORIES

        rows += [compute_row(name) for name in MEMORIES.origins]
    return rows


def find_row(given: str) -> dict[str, Any]:
    """Return the row of a mechanism, as `compute_row` makes it.

    given: a name, or path/to/file.py:ClassName. Raises UserError if it is unknown or cannot be loaded.
    """
    for row in stored_catalog():
        if row["name"] == given:
            return row
    from memtx.memory import MEMORIES

    return compute_row(MEMORIES.find(given))


def compute_row(name: str) -> dict[str, Any]:
    """Return the row of a mechanism in the registry, as `memtx list` shows it.

    name, site, kind and settings come from the class. state_bytes_per_stream, flops_per_token and parameters are costs of the
    tiny preset with bytes as tokens. about is the first line of the module's docstring.
    """
    from memtx.core import state_bytes
    from memtx.memory import MEMORIES
    from memtx.models.cost import flops_per_token
    from memtx.runs.configure import build, get_config
    from memtx.runs.presets import preset

    cls = MEMORIES[name]
    lm = build(get_config(model=preset(name, "tiny")), vocab_size=264)
    return {
        "name": name,
        "site": cls.site,
        "kind": cls.kind,
        "state_bytes_per_stream": state_bytes(lm),
        "flops_per_token": flops_per_token(lm),
        "parameters": lm.num_params(),
        "settings": dataclasses.asdict(cls.Config()),
        "about": (inspect.getmodule(cls).__doc__ or "").strip().splitlines()[0],
    }


def compute_catalog() -> str:
    """Compute the contents of catalog.json."""
    from memtx.memory import MEMORIES

    rows = [compute_row(name) for name in MEMORIES if name not in MEMORIES.origins]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def stored_catalog() -> list[dict[str, Any]]:
    return json.loads(FILE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    FILE.write_text(compute_catalog(), encoding="utf-8")
