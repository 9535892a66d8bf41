"""Memorizing: 64 windows away, and the more it holds the farther

A needle up to 512 tokens before it is asked for; one layer of width 64 that sees 8 tokens, with a memory of keys and values
that is searched for the 8 nearest. The memory holds 32, 128 or 1,024 entries: what it holds is what it can answer from.

The claim (Wu et al. 2022): the gain of a memory grows with its size; a large one is perfect at 64 windows, where the window
alone (`window`) is at chance, 1/16.
"""

from memtx.sweep import chain, product

TASK = "configs/task.py:task=needle,size=micro,memory={}"
DISTANCES = (4, 16, 64, 256, 512)
SIZES = (32, 128, 1024)

config = TASK.format("memorizing")
common = {
    "data.task.distances": DISTANCES,
    "data.task.before": 5,
    "data.segment": 40,
    "train.segments": 13,
    "train.batch": 16,
    "train.steps": 300,
    "optim.lr": 3e-3,
    "optim.warmup": 50,
    "eval.every": 0,
    "eval.examples": 1024,
}


def sweep():
    memorizing = {
        "model.stacks": ((("memorizing",), 1),),
        "memory.memorizing.window": 8,
        "memory.memorizing.segment": 8,
        "memory.memorizing.neighbours": 8,
    }
    window = {"config": TASK.format("window"), "model.stacks": ((("window",), 1),), "memory.window.window": 8}
    return product({"seed": [0, 1, 2]}, chain(product([memorizing], {"memory.memorizing.memory": SIZES}), [window]))


report = {
    "rows": ("memory", "memory.memorizing.memory"),
    "columns": {str(d): {"metric": f"eval/accuracy/distance={d}", "digits": 2} for d in DISTANCES},
    "figures": {"Accuracy by distance": {"y": "eval/accuracy", "x": "distance"}},
    "varies": "state_bytes",
    "floor": 0.1,
}


def claims(table):
    mean = {(row, d): table["memorizing", str(row), str(d)].mean for row in SIZES for d in DISTANCES}
    yield "1,024 entries: perfect (0.99) at every distance, 64 windows included", min(mean[1024, d] for d in DISTANCES) > 0.99
    yield (
        "128 entries: perfect up to 64 tokens, at chance (below 0.2) from 256 on",
        (min(mean[128, d] for d in (4, 16, 64)) > 0.99 and max(mean[128, d] for d in (256, 512)) < 0.2),
    )
    yield (
        "32 entries: perfect up to 16 tokens, at chance from 64 on",
        (min(mean[32, d] for d in (4, 16)) > 0.99 and max(mean[32, d] for d in (64, 256, 512)) < 0.2),
    )
    window = [table["window", "default", str(d)].mean for d in DISTANCES[1:]]
    yield "the window alone: at chance from 16 on", max(window) < 0.2
