"""What the table of mechanisms measures: for each column, the runs' config and where its numbers stand.

Every task's column trains a model of the same size (`micro`: width 64, 2 layers) from random weights; windows see 16 tokens, so
that what is asked lies beyond them, and mechanisms with a segment, block or window of their own have one of that size too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from memtx import get_config
from memtx.memory import MEMORIES
from memtx.models.presets import preset
from memtx.patterns import names

WINDOW = 16
LOCAL = {
    "window": WINDOW,
    "segment": WINDOW,
    "block": WINDOW,
    "sinks": 4,
    "capacity": 2048,
}  # settings by their names, wherever they occur
VOCABULARY = 128


@dataclasses.dataclass(frozen=True)
class Column:
    """config(memory) -> the run; numbers: the table's headings and the metrics behind them, of the last evaluation."""

    config: Callable
    numbers: dict[str, str]


def settings(model: dict) -> dict[str, dict]:
    """For every mechanism of the model, those of LOCAL that it has."""
    used = names(model["stacks"], model.get("body", ""), model.get("head", ""))
    return {
        name: {f.name: LOCAL[f.name] for f in dataclasses.fields(MEMORIES[name].Config) if f.name in LOCAL} for name in used
    }


def task(memory: str, name: str, task: dict, *, steps: int, batch: int = 64, segment: int = 64, segments: int = 1, **data):
    model = preset(memory, "micro") | {"scan": False}
    return get_config(
        model=model,
        memory=settings(model),
        data={"corpus": f"task:{name}", "segment": segment, "task": task, **data},
        train={"steps": steps, "batch": batch, "segments": segments, "log_every": 100},
        optim={"lr": 3e-3, "warmup": 50},
        eval={"every": 0, "batch": 64, "segments": 8, "sample_tokens": 0},
        checkpoint={"every": 100_000},
    )


def mqar(memory: str):
    return task(memory, "mqar", {"vocabulary": VOCABULARY, "length": 64, "pairs": 8}, steps=600)


def forgetting(memory: str):
    return task(memory, "forgetting", {"vocabulary": VOCABULARY, "length": 64, "pairs": 8, "updates": 8}, steps=600)


def needle(memory: str):
    """Learned at short distances first: 64 windows away there is no gradient to begin with."""
    distances = {"distances": (4, 16, 64), "before": 8}
    return task(
        memory,
        "needle",
        {"distances": (4 * WINDOW, 16 * WINDOW, 64 * WINDOW), "before": 8},
        steps=300,
        batch=16,
        segments=17,
        curriculum=((200, distances),),
    )


def books(memory: str):
    model = preset(memory, "tiny") | {"scan": False}
    return get_config(
        model=model,
        data={"corpus": "books", "segment": 128},
        train={"steps": 300, "batch": 8, "segments": 2, "log_every": 100},
        optim={"lr": 3e-3, "warmup": 50},
        eval={"every": 0, "segments": 64, "sample_tokens": 0},
        checkpoint={"every": 100_000},
    )


COLUMNS = {
    "mqar": Column(mqar, {"MQAR": "eval/accuracy"}),
    "forgetting": Column(forgetting, {"forgetting": "eval/accuracy/updated=yes"}),
    "needle": Column(needle, {f"needle {n} W": f"eval/accuracy/distance={n * WINDOW}" for n in (4, 16, 64)}),
    "books": Column(books, {"books, bits per byte": "eval/bits_per_byte"}),
}
