"""ARMT holds more pairs than RMT; both need a curriculum

One pair of key and value a segment, 8 of them, then a key is asked for: everything passes through memory tokens (RMT, 4 of
them) or an associative matrix of each layer (ARMT). With the curriculum, examples have 1, 2, 4 and then 8 pairs; without, 8
from the first step.

The claims (Bulatov et al. 2022; Rodkin et al. 2024): ARMT > RMT by 0.2; without a curriculum RMT does not learn it.
"""

from memtx.sweep import product

TASK = "configs/task.py:task=associative,size=micro,memory={}"
CURRICULUM = ((400, {"pairs": 1}), (400, {"pairs": 2}), (600, {"pairs": 4}))

config = TASK.format("rmt")
common = {
    "data.task.pairs": 8,
    "data.segment": 4,
    "train.segments": 9,
    "train.batch": 64,
    "train.steps": 2400,
    "optim.lr": 2e-3,
    "eval.every": 0,
    "eval.task": {"vary": False},
}


def sweep():
    models = [
        {
            "config": TASK.format(name),
            f"memory.{name}.segment": 4,
            f"memory.{name}.memory": 4,
            f"memory.{name}.remat": False,
        }
        for name in ("rmt", "armt")
    ]
    return product({"seed": [0, 1, 2]}, models, {"data.curriculum": [CURRICULUM, ()]})


report = {
    "rows": ("memory", "data.curriculum"),
    "columns": {"exact match, 8 pairs": "eval/exact"},
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.1,
}


def claims(table):
    def exact(name: str, how=CURRICULUM) -> float:
        return table[name, how, "exact match, 8 pairs"].mean

    yield "with the curriculum ARMT holds more than RMT (0.2)", exact("armt") > exact("rmt") + 0.2
    yield "RMT answers less without the curriculum (0.1)", exact("rmt", ()) < exact("rmt") - 0.1
    yield "so does ARMT (0.1)", exact("armt", ()) < exact("armt") - 0.1
