"""Networks that train while they read recall beyond the window

The task is multi-query associative recall: 4 pairs in 64 tokens, with a vocabulary of 128. The model has two layers of width
64. The first has a window of 16 tokens, which joins a key and its value. The second is the memory under test. Two windows
reach 30 tokens back. TTT's memory is a small network per head that is trained on the tokens it reads, with the same weights
for 16 tokens.

The claim (Sun et al. 2024): TTT recalls the text that it has read, as attention does and a window cannot.
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
    yield "full attention and Gated DeltaNet recall more than 0.99", min(mean["full"], mean["gated_deltanet"]) > 0.99
    yield "TTT-Linear and TTT-MLP recall more than 0.95", min(mean["ttt_linear"], mean["ttt_mlp"]) > 0.95
    yield "two windows recall less than 0.1 from 32 or more tokens back", table["window", "32 tokens back and more"].mean < 0.1
