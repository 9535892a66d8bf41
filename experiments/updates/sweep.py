"""Delta rules overwrite, additive memories do not

Eight keys are written, then written again with other values, then asked for. The task is zoology's forgetting MQAR, with 64
tokens and a vocabulary of 128. Each mechanism uses its paper's block at size `micro`: width 64, 2 layers, 600 steps of 64
examples.

The claim (Yang et al. 2024; Arora et al. 2023): on updated keys, delta rules beat linear attention by 0.2 and more.
"""

from memtx.sweep import product

config = "configs/task.py:task=forgetting,size=micro"
common = {
    "data.task.vocabulary": 128,
    "data.task.pairs": 8,
    "data.task.updates": 8,
    "train.steps": 600,
    "optim.lr": 3e-3,
    "optim.warmup": 50,
    "eval.every": 0,
}
ADDITIVE = ("linear_attention", "retnet", "gla")
DELTA = ("deltanet", "gated_deltanet", "kda")


def sweep():
    memories = [f"configs/task.py:task=forgetting,size=micro,memory={name}" for name in ADDITIVE + DELTA]
    return product({"seed": [0, 1, 2]}, {"config": memories})


report = {
    "rows": "memory",
    "columns": {"updated keys": "eval/accuracy/updated=yes"},
    "figures": {"Loss": {"y": "train/loss", "x": "step"}},
    "floor": 0.05,
}


def claims(table):
    mean = {name: table[name, "updated keys"].mean for name in ADDITIVE + DELTA}
    for name in DELTA:
        yield f"{name} beats linear_attention by 0.2", mean[name] > mean["linear_attention"] + 0.2
    yield (
        "the better of gla and retnet, which decay, beats linear_attention by 0.2",
        max(mean["gla"], mean["retnet"]) > mean["linear_attention"] + 0.2,
    )
