"""Infini-attention forgets old segments

Pairs of key and value are read in segments of 8 tokens (4 pairs) by two layers of width 64, then asked for (MQAR): all but the
segment under way lies in the compressive memory only, to which every segment is added. A single needle among noise, which the
memory can learn not to take in, it answers from 8 segments away.

The claim (the failed reproduction of Infini-attention by Hugging Face, 2024): what it recalls falls with the number of
compressions.
"""

from memtx.sweep import product

PAIRS = (4, 8, 16, 32)

config = "configs/task.py:task=mqar,size=micro,memory=infini"
common = {
    "data.task.vocabulary": 128,
    "data.task.mix": ((32, 4, 1), (64, 8, 1), (128, 16, 1), (128, 32, 1)),
    "data.segment": 8,
    "train.segments": 16,
    "train.batch": 32,
    "train.steps": 600,
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
    "columns": {f"{n // 4} compressed": {"metric": f"eval/accuracy/pairs={n}", "digits": 2} for n in PAIRS},
    "figures": {"Accuracy by number of pairs": {"y": "eval/accuracy", "x": "pairs"}},
    "floor": 0.05,
}


def claims(table):
    for update in ("linear", "delta"):
        mean = [table[update, f"{n // 4} compressed"].mean for n in PAIRS]
        yield f"{update}: one compressed segment is recalled (0.9)", mean[0] > 0.9
        yield f"{update}: of eight compressed segments less is recalled (0.1)", mean[-1] < mean[0] - 0.1
