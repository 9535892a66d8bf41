"""Memorizing with a larger memory reaches farther, up to 64 windows

A needle is asked for up to 512 tokens after it was read. The model has one layer of width 64 and a window of 8 tokens. Its
memory keeps 32, 128 or 1,024 keys and values, and each query reads the 8 nearest. The model can answer only from entries that
the memory still keeps.

The claim (Wu et al. 2022): the gain of a memory grows with its size. A large memory is perfect at 64 windows, where the window
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
    yield (
        "with 1,024 entries, accuracy is above 0.99 at every distance, 64 windows included",
        min(mean[1024, d] for d in DISTANCES) > 0.99,
    )
    yield (
        "with 128 entries, accuracy is above 0.99 up to 64 tokens and below 0.2 from 256 tokens on",
        (min(mean[128, d] for d in (4, 16, 64)) > 0.99 and max(mean[128, d] for d in (256, 512)) < 0.2),
    )
    yield (
        "with 32 entries, accuracy is above 0.99 up to 16 tokens and below 0.2 from 64 tokens on",
        (min(mean[32, d] for d in (4, 16)) > 0.99 and max(mean[32, d] for d in (64, 256, 512)) < 0.2),
    )
    window = [table["window", "default", str(d)].mean for d in DISTANCES[1:]]
    yield "with the window alone, accuracy is below 0.2 from 16 tokens on", max(window) < 0.2
