"""Infini-attention forgets old segments

A needle among noise, read in segments of 8 tokens by two layers of width 64; what lies before the present segment is in the
compressive memory only. The farther the needle, the more segments were added to that memory after it.

The claim (the failed reproduction of Infini-attention by Hugging Face, 2024): what it recalls falls with the number of
compressions.
"""

from memtx.sweep import product

DISTANCES = (4, 8, 16, 32, 64)

config = "configs/task.py:task=needle,size=micro,memory=infini"
common = {
    "data.task.distances": DISTANCES,
    "data.task.before": 5,
    "data.segment": 8,
    "train.segments": 9,
    "train.batch": 32,
    "train.steps": 500,
    "optim.lr": 3e-3,
    "optim.warmup": 50,
    "eval.every": 0,
    "eval.examples": 2048,
    "memory.infini.segment": 8,
}


def sweep():
    return product({"seed": [0, 1, 2]}, {"memory.infini.update": ["linear", "delta"]})


report = {
    "rows": "memory.infini.update",
    "columns": {str(d): {"metric": f"eval/accuracy/distance={d}", "digits": 2} for d in DISTANCES},
    "figures": {"Accuracy by distance": {"y": "eval/accuracy", "x": "distance"}},
    "floor": 0.1,
}


def claims(table):
    for update in ("linear", "delta"):
        mean = [table[update, str(d)].mean for d in DISTANCES]
        yield f"{update}: one segment back is answered (0.9)", mean[1] > 0.9
        yield f"{update}: 8 segments back, accuracy is lower by 0.1 and more", mean[-1] < mean[1] - 0.1
