"""How far back: Transformer-XL beyond its window, compressed memories beyond that

A needle, `distance` tokens before it is asked for, is read by one layer of width 64, so that accuracy by distance is what the
memory reaches. The value stands at the end of the first segment of 8 tokens. `window` sees 8 tokens, itself included; `xl`
its own segment and the one before, so distance 8; `compressive` 24 tokens more, four to a slot, so distance 28; `full` all of
them. Noise has tokens of its own: chance is 1/16.

The claims: XL answers where the window cannot (Dai et al. 2019), the Compressive Transformer where XL cannot (Rae et al.
2020).
"""

from memtx.sweep import product

TASK = "configs/task.py:task=needle,size=micro,memory={}"
DISTANCES = (4, 8, 12, 20, 28, 36, 64)
SETTINGS = {
    "window": {"memory.window.window": 8},
    "xl": {"memory.xl.segment": 8, "memory.xl.memory": 8},
    "compressive": {
        "memory.compressive.segment": 8,
        "memory.compressive.memory": 8,
        "memory.compressive.compressed": 6,
        "memory.compressive.rate": 4,
    },
    "full": {"memory.full.capacity": 72},
}

config = TASK.format("window")
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
}


def sweep():
    runs = [{"config": TASK.format(name), "model.stacks": (((name,), 1),), **settings} for name, settings in SETTINGS.items()]
    return product({"seed": [0, 1, 2]}, runs)


report = {
    "rows": "memory",
    "columns": {str(d): {"metric": f"eval/accuracy/distance={d}", "digits": 2} for d in DISTANCES},
    "figures": {"Accuracy by distance": {"y": "eval/accuracy", "x": "distance"}},
    "varies": "state_bytes",
    "floor": 0.1,
}


def claims(table):
    mean = {(name, d): table[name, str(d)].mean for name in SETTINGS for d in DISTANCES}
    yield (
        "the window answers within its 8 tokens (0.95) and not beyond (below 0.2)",
        (mean["window", 4] > 0.95 and max(mean["window", d] for d in DISTANCES[1:]) < 0.2),
    )
    yield "XL answers at 8, one window back (0.95)", mean["xl", 8] > 0.95
    yield "XL is at chance (below 0.2) beyond", max(mean["xl", d] for d in DISTANCES[2:]) < 0.2
    yield "compressed memories answer at 12, 20 and 28 (0.8)", min(mean["compressive", d] for d in (12, 20, 28)) > 0.8
    yield "and are at chance (below 0.2) beyond", max(mean["compressive", d] for d in (36, 64)) < 0.2
