"""Infini-attention and the number of compressions

A needle among noise, read in segments of 8 tokens by two layers of width 64; what lies before the present segment is in the
compressive memory only, to which every segment is added. Trained on needles up to 8 segments back, asked at up to 64.

The claim (the failed reproduction of Infini-attention by Hugging Face, 2024): what it recalls falls with the number of
compressions.
"""

from memtx.sweep import product

NEAR, FAR = (4, 8, 16, 32, 64), (8, 64, 128, 256, 512)

config = "configs/task.py:task=needle,size=micro,memory=infini"
common = {
    "data.task.distances": NEAR,
    "data.task.before": 5,
    "data.segment": 8,
    "train.segments": 9,
    "train.batch": 32,
    "train.steps": 500,
    "optim.lr": 3e-3,
    "optim.warmup": 50,
    "eval.every": 0,
    "eval.examples": 1024,
    "eval.task": {"distances": FAR},
    "memory.infini.segment": 8,
}


def sweep():
    return product({"seed": [0, 1, 2]}, {"memory.infini.rule": ["linear", "delta"]})


report = {
    "rows": "memory.infini.rule",
    "columns": {f"{d // 8} back": {"metric": f"eval/accuracy/distance={d}", "digits": 2} for d in FAR},
    "figures": {"Accuracy by distance": {"y": "eval/accuracy", "x": "distance"}},
    "floor": 0.1,
}


def claims(table):
    for rule in ("linear", "delta"):
        mean = [table[rule, f"{d // 8} back"].mean for d in FAR]
        yield f"{rule}: one segment back is answered (0.95)", mean[0] > 0.95
        yield f"{rule}: so are eight, as many as in training (0.95)", mean[1] > 0.95
        yield f"{rule}: from 64 segments back less is recalled (0.1)", mean[-1] < mean[0] - 0.1
