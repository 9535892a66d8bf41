"""What each memory keeps, for `memtx list`."""

from __future__ import annotations

import dataclasses
import inspect

from memtx.config import get_config
from memtx.memory import MEMORIES
from memtx.memory.base import state_bytes
from memtx.models.lm import build
from memtx.models.presets import preset


def listing() -> list[dict]:
    """One row a mechanism: name, site, kind of state, bytes that a stream keeps in a tiny model, its settings."""
    rows = []
    for name, cls in MEMORIES.items():
        lm = build(get_config(model=preset(name, "tiny")), vocab_size=264)
        settings = ", ".join(f"{key}={value}" for key, value in dataclasses.asdict(cls.Config()).items())
        doc = (inspect.getmodule(cls).__doc__ or "").strip().splitlines()[0]
        rows.append(
            {
                "name": name,
                "site": cls.site,
                "kind": cls.kind,
                "state_bytes_per_stream": state_bytes(lm),
                "parameters": lm.num_params(),
                "settings": settings,
                "about": doc,
            }
        )
    return rows
