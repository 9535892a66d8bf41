"""Recall beyond the window: networks trained while they read

Multi-query associative recall: 4 pairs in 64 tokens, a vocabulary of 128, two layers of width 64. The first layer sees a
window of 16 tokens, which puts a key beside its value; the second holds the memory. Two windows reach 30 tokens back. TTT's
memory is a small network per head that is trained on what it reads, 16 tokens at the same weights.

The claim (Sun et al. 2024): what it reads, it recalls, as attention does and a window cannot.
"""

from memtx.sweep import product

CONFIG = "experiments/recall/config.py:memory={}"

config = CONFIG.format("window")
RUNS = {
    "window": {},
    "full": {},
    "gated_deltanet": {},
    "ttt_linear": {},
    "ttt_mlp": {"memory.ttt_mlp.base_lr": 8},
}


def sweep():
    return product({"seed": [0, 1, 2]}, [{"config": CONFIG.format(name), **settings} for name, settings in RUNS.items()])


report = {
    "rows": "memory",
    "columns": {"recall": "eval/accuracy", "32 tokens back and more": "eval/accuracy/distance=32"},
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.02,
}


def claims(table):
    mean = {name: table[name, "recall"].mean for name in RUNS}
    yield "full attention and Gated DeltaNet tell all (0.99)", min(mean["full"], mean["gated_deltanet"]) > 0.99
    yield "so do TTT-Linear and TTT-MLP (0.95)", min(mean["ttt_linear"], mean["ttt_mlp"]) > 0.95
    yield "windows do not tell what lies 32 tokens back (below 0.1)", table["window", "32 tokens back and more"].mean < 0.1
