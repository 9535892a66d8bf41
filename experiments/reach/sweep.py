"""Transformer-XL reaches one segment back, and compressed memories reach farther

A needle is asked for `distance` tokens after it was read. The model has one layer of width 64, so accuracy by distance shows
how far the memory reaches. The value is the last token of the first segment of 8 tokens. `window` sees 8 tokens, the query
included. `xl` sees its own segment and the one before, so distance 8. `compressive` sees 24 tokens more, with four in a slot,
so distance 28. `full` sees all tokens. Noise uses its own tokens, so chance is 1/16.

The claims: XL answers where the window cannot (Dai et al. 2019), and the Compressive Transformer where XL cannot (Rae et al.
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
        "the window answers more than 0.95 within its 8 tokens and less than 0.2 beyond them",
        (mean["window", 4] > 0.95 and max(mean["window", d] for d in DISTANCES[1:]) < 0.2),
    )
    yield "XL answers more than 0.95 at distance 8, one window back", mean["xl", 8] > 0.95
    yield "XL answers less than 0.2 beyond distance 8", max(mean["xl", d] for d in DISTANCES[2:]) < 0.2
    yield (
        "compressed memories answer more than 0.8 at distances 12, 20 and 28",
        min(mean["compressive", d] for d in (12, 20, 28)) > 0.8,
    )
    yield "compressed memories answer less than 0.2 beyond distance 28", max(mean["compressive", d] for d in (36, 64)) < 0.2
