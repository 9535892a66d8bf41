"""ARMT holds more pairs than RMT; neither learns to hold any without a curriculum

One pair of key and value a segment, 8 of them, then a key is asked for: everything passes through memory tokens (RMT, 4 of
them) or an associative matrix of each layer (ARMT). With the curriculum, examples have 2 pairs of the same 2 keys at first,
then more of both; without, 8 pairs of 16 keys from the first step. Asked are 2 to 16 pairs.

The claims (Bulatov et al. 2022; Rodkin et al. 2024): ARMT > RMT by 0.2, also at twice the pairs it was trained with; without a
curriculum neither learns it.
"""

from memtx.sweep import product

TASK = "configs/task.py:task=associative,size=micro,memory={}"
CURRICULUM = (
    (500, {"pairs": 2, "keys": 2}),
    (200, {"pairs": 2, "keys": 4}),
    (300, {"pairs": 3, "keys": 6}),
    (300, {"pairs": 5, "keys": 10}),
)
PAIRS = (2, 5, 8, 16)

config = TASK.format("rmt")
common = {
    "data.task.pairs": 8,
    "data.task.vary": False,
    "data.segment": 4,
    "train.segments": 9,
    "train.batch": 128,
    "train.steps": 2000,
    "optim.lr": 2e-3,
    "optim.schedule": "constant",
    "optim.warmup": 50,
    "eval.every": 0,
    "eval.examples": 4096,
    "eval.task": {"pairs": 16, "vary": True},
}


def sweep():
    models = [
        {
            "config": TASK.format(name),
            f"memory.{name}.segment": 4,
            f"memory.{name}.memory": 4,
            f"memory.{name}.remat": False,
            **more,
        }
        for name, more in (("rmt", {}), ("armt", {"memory.armt.features": 16, "memory.armt.value_scale": 0.3}))
    ]
    return product({"seed": [0, 1, 2]}, models, {"data.curriculum": [CURRICULUM, ()]})


report = {
    "rows": ("memory", "data.curriculum"),
    "columns": {f"{n} pairs": {"metric": f"eval/exact/pairs={n}", "digits": 2} for n in PAIRS},
    "figures": {"Exact answers by number of pairs": {"y": "eval/exact", "x": "pairs"}},
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.1,
}


def claims(table):
    def exact(name: str, pairs: int, how=CURRICULUM) -> float:
        return table[name, how, f"{pairs} pairs"].mean

    yield "ARMT answers from 8 pairs (0.9)", exact("armt", 8) > 0.9
    yield "more often than RMT (0.2)", exact("armt", 8) > exact("rmt", 8) + 0.2
    yield "and from twice as many (0.8)", exact("armt", 16) > 0.8
    yield "RMT answers from 5 (0.9)", exact("rmt", 5) > 0.9
    yield "without the curriculum, neither does from 2 (0.6)", max(exact("rmt", 2, ()), exact("armt", 2, ())) < 0.6
