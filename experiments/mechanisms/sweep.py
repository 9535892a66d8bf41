"""Mechanisms side by side

Every mechanism with one recipe: synthetic tasks from random weights, and a text.
"""

import statistics
import time

import jax
import numpy as np

import memtx
from memtx.memory import MEMORIES
from memtx.sweep import product

config = "experiments/mechanisms/config.py"

# those of a decoder: they see no token that comes next, and need no encoder
NAMES = [name for name, cls in MEMORIES.items() if cls.causal and not cls.encoded]
COLUMNS = ("mqar", "forgetting", "needle", "passkey", "books")
NEEDLES = {f"needle {n} W": f"eval/accuracy/distance={16 * n}" for n in (4, 16, 64)}


def sweep():
    runs = (f"{config}:column={column},memory={m}" for column in COLUMNS for m in NAMES)
    return product({"seed": [0, 1, 2]}, {"config": runs})


def run(config, workdir):
    """How fast the model of a text reads on: tokens/s of one stream, calls of 128 tokens, the median of 50."""
    if config.data.corpus.startswith("task:"):
        return {}
    trained = memtx.load(workdir)
    call, state = jax.jit(trained.lm, donate_argnums=2), jax.jit(lambda: trained.lm.init_state(1))()
    text, seconds = np.random.default_rng(0).integers(0, 256, (60, 1, 128), np.int32), []
    for token_BT in text:
        start = time.perf_counter()
        logits, state = call(trained.params, token_BT, state)
        jax.block_until_ready((logits, state))
        seconds.append(time.perf_counter() - start)
    return {"stream/tokens_per_s": 128 / statistics.median(seconds[10:])}


report = {
    "rows": "memory",
    "columns": {
        "tokens/s, training": {"metric": "train/tokens_per_s", "where": {"column": "books"}, "digits": 0},
        "streaming": {"metric": "stream/tokens_per_s", "where": {"column": "books"}, "digits": 0},
        "MQAR": {"metric": "eval/accuracy", "where": {"column": "mqar"}, "digits": 2},
        "forgetting": {"metric": "eval/accuracy/updated=yes", "where": {"column": "forgetting"}, "digits": 2},
        **{name: {"metric": metric, "where": {"column": "needle"}, "digits": 2} for name, metric in NEEDLES.items()},
        "passkey": {"metric": "eval/accuracy", "where": {"column": "passkey"}, "digits": 2},
        "books, bits per byte": {"metric": "eval/bits_per_byte", "where": {"column": "books"}, "better": "lower"},
    },
    "figures": {"Needle by distance": {"y": "eval/accuracy", "x": "distance", "where": {"column": "needle"}}},
}
