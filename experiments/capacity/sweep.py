"""ARMT keeps more pairs than RMT, and neither learns without a curriculum

Each segment has one pair of key and value. Then a key is asked for, so all information passes through memory tokens (RMT, 4
of them) or through an associative matrix in each layer (ARMT). With the curriculum, examples have 2 pairs of the same 2 keys
at first and then more of both, up to 5 pairs of 16 keys. Without it, the model sees the full task from the first step. RMT,
which learns later, trains for 5,000 steps and ARMT for 3,500. The table shows accuracy with 2 to 16 pairs.

The claims (Bulatov et al. 2022; Rodkin et al. 2024): RMT recalls 5 pairs. ARMT recalls twice as many as it was trained with,
and beats RMT there by 0.2. Without a curriculum neither learns the task.
"""

from memtx import load_config
from memtx.sweep import chain, product

TASK = "configs/task.py:task=associative,size=micro,memory={}"
PAIRS = (2, 5, 10, 16)

config = TASK.format("full")
common = {"eval.every": 0, "eval.examples": 4096, "eval.task": {"pairs": 16, "vary": True}}
CURRICULUM = load_config(config).data.curriculum
LONGER = (*CURRICULUM[:2], *((1500, at) for _, at in CURRICULUM[2:]))
RMT = {"config": TASK.format("rmt"), "memory.rmt.memory": 4, "memory.rmt.remat": False, "train.steps": 5000}
ARMT = {"config": TASK.format("armt"), "memory.armt.memory": 4, "memory.armt.remat": False}
ARMT |= {"memory.armt.features": 16, "memory.armt.value_scale": 0.3}


def sweep():
    armt = product({"data.curriculum": [CURRICULUM, ()]}, [ARMT])
    rmt = product({"data.curriculum": [LONGER, ()]}, [RMT])
    return product({"seed": [0, 1, 2]}, chain(rmt, armt))


report = {
    "rows": ("memory", "data.curriculum"),
    "columns": {f"{n} pairs": {"metric": f"eval/exact/pairs={n}", "digits": 2} for n in PAIRS},
    "figures": {"Exact answers by number of pairs": {"y": "eval/exact", "x": "pairs"}},
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.1,
}


def claims(table):
    learned = {"rmt": LONGER, "armt": CURRICULUM}

    def exact(name: str, pairs: int, curriculum: bool = True) -> float:
        return table[name, learned[name] if curriculum else (), f"{pairs} pairs"].mean

    yield "RMT answers more than 0.9 of questions about 5 pairs", exact("rmt", 5) > 0.9
    yield (
        "ARMT answers more than 0.9 of questions about 10 pairs, twice as many as it was trained with",
        exact("armt", 10) > 0.9,
    )
    yield "ARMT beats RMT by more than 0.2 on 10 pairs", exact("armt", 10) > exact("rmt", 10) + 0.2
    yield "without the curriculum, RMT answers less than 0.5 of questions about 5 pairs", exact("rmt", 5, False) < 0.5
    yield "without the curriculum, ARMT answers less than 0.5 of questions about 5 pairs", exact("armt", 5, False) < 0.5
