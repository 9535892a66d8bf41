"""The runs of the table of mechanisms: `config.py:column=mqar,memory=xl`.

The tasks' columns train a model of the same size (`micro`: width 64, 2 layers) from random weights. Windows see 16 tokens, so
questions are about text beyond them. A mechanism's own segment, block or window has that size too. A memory of tokens, keys or
chunks has room for a whole example. Tasks start with short examples. Without them, full attention answered 0.10 of the
questions about 16 pairs after 400 steps. With them it answered all (seed 0).
"""

from __future__ import annotations

import dataclasses

from memtx.errors import check_known
from memtx.memory import MEMORIES
from memtx.models.patterns import names
from memtx.runs.configure import get_config as default_config
from memtx.runs.configure import parse_arg
from memtx.runs.presets import preset

WINDOW = 16
LOCAL = {"window": WINDOW, "segment": WINDOW, "block": WINDOW, "sinks": 4}  # for each mechanism with a setting of that name
NEAR = {
    "xl": {"memory": WINDOW},
    "compressive": {"memory": WINDOW, "compressed": 4 * WINDOW},
    "block_recurrent": {"states": 2 * WINDOW},
    "titans_mac": {"chunk": WINDOW},  # MAC attends to every token of its chunk
}
DISTANCES = (4, 16, 64)  # of the needle, in windows
VOCABULARY = 64


def get_config(arg: str = ""):
    """Return the ConfigDict for `arg`, "column=NAME,memory=NAME"."""
    choice = parse_arg(arg, column="mqar", memory="window")
    check_known(choice.column, COLUMNS, "column")
    return COLUMNS[choice.column](choice.memory)


def mqar(memory: str):
    """Recall of 16 pairs in 64 tokens."""
    full = {"vocabulary": VOCABULARY, "length": 64, "pairs": 16}
    return task(memory, "mqar", full, steps=400, curriculum=((150, {"length": 16, "pairs": 4}),))


def forgetting(memory: str):
    """Recall of 8 pairs whose values are all updated once."""
    full = {"vocabulary": VOCABULARY, "length": 64, "pairs": 8, "updates": 8}
    return task(memory, "forgetting", full, steps=400, curriculum=((150, {"length": 16, "pairs": 4, "updates": 0}),))


def needle(memory: str):
    """The needle, learned at short distances first, because at 64 windows there is no useful gradient at the start."""
    near = {"distances": DISTANCES, "before": 8}
    far = {"distances": tuple(n * WINDOW for n in DISTANCES), "before": 8}
    return task(memory, "needle", far, steps=300, batch=16, segments=17, curriculum=((200, near),))


def passkey(memory: str):
    """The pass key, a space and five digits, 3 to 7 windows back.

    Full attention with its state wiped at each segment answers 0.27.
    """
    return task(memory, "passkey", {"length": 320}, steps=400, batch=32, segments=5)


def books(memory: str):
    """Shakespeare's plays, 200 steps at size `tiny`."""
    return default_config(
        model=preset(memory, "tiny") | {"scan": False},
        data={"corpus": "books", "segment": 128},
        train={"steps": 200, "batch": 8, "segments": 2, "log_every": 100},
        optim={"lr": 3e-3, "warmup": 50},
        eval={"every": 0, "segments": 64, "sample_tokens": 0},
        checkpoint={"every": 100_000},
    )


COLUMNS = {"mqar": mqar, "forgetting": forgetting, "needle": needle, "passkey": passkey, "books": books}


def task(memory: str, name: str, task: dict, *, steps: int, batch: int = 64, segments: int = 1, **data):
    """Return the config of a task at size `micro`. A step has `segments` of 64 tokens. `data` adds keys to the group `data`."""
    model = preset(memory, "micro") | {"scan": False}
    return default_config(
        model=model,
        memory=settings(model, 64 * segments),
        data={"corpus": f"task:{name}", "segment": 64, "task": task, **data},
        train={"steps": steps, "batch": batch, "segments": segments, "log_every": 100},
        optim={"lr": 3e-3, "warmup": 50},
        eval={"every": 0, "batch": 64, "examples": 256, "sample_tokens": 0},
        checkpoint={"every": 100_000},
    )


def settings(model: dict, length: int) -> dict[str, dict]:
    """Return the settings of each mechanism of a model that reads `length` tokens per example."""
    room = {
        "full": {"capacity": length},
        "memorizing": {"memory": length},
        "landmark": {"memory": length // WINDOW},
        "knn_lm": {"memory": length},
    }
    return {
        name: {f.name: LOCAL[f.name] for f in dataclasses.fields(MEMORIES[name].Config) if f.name in LOCAL}
        | NEAR.get(name, {})
        | room.get(name, {})
        for name in names(model["stacks"], model.get("body", ""), model.get("head", ""))
    }
