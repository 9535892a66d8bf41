"""Mechanisms side by side

Every mechanism with one recipe: synthetic tasks from random weights, and a text.
"""

from memtx.memory import MEMORIES
from memtx.sweep import product

config = "experiments/mechanisms/config.py"

NEEDLES = {f"needle {n} W": f"eval/accuracy/distance={16 * n}" for n in (4, 16, 64)}


def sweep():
    runs = (f"{config}:column={column},memory={m}" for column in ("mqar", "forgetting", "needle", "books") for m in MEMORIES)
    return product({"seed": [0, 1, 2]}, {"config": runs})


report = {
    "rows": "memory",
    "columns": {
        "tokens/s, training": {"metric": "train/tokens_per_s", "where": {"column": "books"}, "digits": 0},
        "MQAR": {"metric": "eval/accuracy", "where": {"column": "mqar"}, "digits": 2},
        "forgetting": {"metric": "eval/accuracy/updated=yes", "where": {"column": "forgetting"}, "digits": 2},
        **{name: {"metric": metric, "where": {"column": "needle"}, "digits": 2} for name, metric in NEEDLES.items()},
        "books, bits per byte": {"metric": "eval/bits_per_byte", "where": {"column": "books"}, "better": "lower"},
    },
}
