"""Titans beside Gated DeltaNet

The same recall (MQAR, 8 pairs in 64 tokens, a vocabulary of 128), two layers of width 64. Titans' memory is an MLP that
learns by gradient descent while it reads; with a single linear layer, without momentum, it is Gated DeltaNet's rule.

The claim (Behrouz et al. 2024): a deep memory with momentum recalls more than a matrix.
"""

from memtx.sweep import product

TASK = "configs/task.py:task=mqar,size=micro,memory={}"

config = TASK.format("gated_deltanet")
common = {
    "data.task.vocabulary": 128,
    "data.task.pairs": 8,
    "data.task.length": 64,
    "train.steps": 600,
    "train.batch": 64,
    "optim.lr": 3e-3,
    "optim.warmup": 50,
    "eval.every": 0,
}


def sweep():
    titans = {"config": TASK.format("titans_mag"), "memory.titans_mag.window": 16, "memory.titans_mag.chunk": 16}
    runs = [
        {},
        *(
            titans | {"memory.titans_mag.depth": depth, "memory.titans_mag.momentum": momentum}
            for depth, momentum in ((1, False), (1, True), (2, True))
        ),
    ]
    return product({"seed": [0, 1, 2]}, runs)


report = {
    "rows": ("memory", "memory.titans_mag.depth", "memory.titans_mag.momentum"),
    "columns": {"recall": "eval/accuracy"},
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.05,
}


def claims(table):
    matrix = table["gated_deltanet", "default", "default", "recall"].mean
    linear, momentum, deep = (
        table["titans_mag", depth, momentum, "recall"].mean for depth, momentum in ((1, False), (1, True), (2, True))
    )
    yield "Titans with depth 2 and momentum recalls more than Gated DeltaNet (0.02)", deep > matrix + 0.02
    yield "momentum adds to a linear memory (0.02)", momentum > linear + 0.02
    yield "depth adds to momentum (0.02)", deep > momentum + 0.02
