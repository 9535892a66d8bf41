"""Longer than trained: recurrent memories and learned positions

Two layers of width 64 are trained on needles up to 64 tokens away and asked for needles up to 256 tokens away. `full` with
learned positions has never seen the later positions. Gated DeltaNet and LSTM use no positions.

The claim: memories that carry a state generalise in length, and attention with learned absolute positions does not.
"""

from memtx.sweep import product

TASK = "configs/task.py:task=needle,size=micro,memory={}"
NEAR, FAR = (8, 16, 32, 64), (64, 128, 256)

config = TASK.format("full")
common = {
    "data.task.distances": NEAR,
    "data.task.before": 5,
    "data.segment": 24,
    "train.segments": 3,
    "train.batch": 32,
    "train.steps": 400,
    "optim.lr": 3e-3,
    "optim.warmup": 50,
    "eval.every": 0,
    "eval.examples": 2048,
    "eval.task": {"distances": FAR},
}
RUNS = {
    "full, learned": {"config": TASK.format("full"), "model.position": "learned", "memory.full.capacity": 272},
    "full, rope": {"config": TASK.format("full"), "model.position": "rope", "memory.full.capacity": 272},
    "gated_deltanet": {"config": TASK.format("gated_deltanet"), "model.position": "none"},
    "lstm": {"config": TASK.format("lstm"), "model.position": "none"},
}


def sweep():
    return product({"seed": [0, 1, 2]}, RUNS.values())


report = {
    "rows": ("memory", "model.position"),
    "columns": {str(d): {"metric": f"eval/accuracy/distance={d}", "digits": 2} for d in FAR},
    "figures": {"Accuracy by distance": {"y": "eval/accuracy", "x": "distance"}},
    "varies": ("params", "flops_per_token", "state_bytes"),
    "floor": 0.1,
}


def claims(table):
    learned, gdn = ([table[*row, str(d)].mean for d in FAR] for row in (("full", "learned"), ("gated_deltanet", "none")))
    yield (
        "gated_deltanet and full with learned positions answer more than 0.95 at the longest trained distance",
        min(learned[0], gdn[0]) > 0.95,
    )
    yield "gated_deltanet answers more than 0.8 at four times the longest trained distance", gdn[2] > 0.8
    yield "full with learned positions answers less than 0.5 at four times the longest trained distance", learned[2] < 0.5
