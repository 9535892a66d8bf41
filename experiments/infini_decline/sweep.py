"""Infini-attention recalls less after more compressions

The task is recall of 4 pairs among tokens that look like keys and values, learned in texts of 64 tokens. The first layer has a
window of 16. The second is Infini-attention with segments of 16 and the paper's linear update. It reads everything before the
present segment from its compressive memory, to which each segment is added. The models are then asked in texts of 4,096
tokens, and accuracy is reported by how many tokens ago a pair was written. Gated DeltaNet, with a matrix as large and a forget
gate, is the comparison.

The claim (Hugging Face's failed reproduction of Infini-attention, 2024): recall falls with the number of compressions.
"""

from memtx.sweep import product

CONFIG = "experiments/recall/config.py:memory={}"
AGES = (16, 64, 256, 1024, 2048)  # tokens; an age covers the range up to twice as many

config = CONFIG.format("infini")
common = {"data.task.filler": "safe", "train.steps": 1500, "eval.task": {"length": 4096}}


def sweep():
    infini = {"memory.infini.segment": 16, "memory.infini.rule": "linear"}
    return product({"seed": [0, 1, 2]}, [infini, {"config": CONFIG.format("gated_deltanet")}])


report = {
    "rows": "memory",
    "columns": {f"{n:,} ago": {"metric": f"eval/accuracy/distance={n}", "digits": 2} for n in AGES},
    "figures": {"Accuracy by distance": {"y": "eval/accuracy", "x": "distance"}},
    "varies": ("params", "flops_per_token", "state_bytes"),
    "floor": 0.1,
}


def claims(table):
    mean = [table["infini", f"{n:,} ago"].mean for n in AGES]
    yield "infini recalls more than 0.95 of the pairs written one segment ago", mean[0] > 0.95
    yield "infini recalls more than 0.95 from four to eight segments ago, up to twice the trained length", mean[1] > 0.95
    yield "recall from 128 segments ago is more than 0.1 below that from four to eight", mean[-1] < mean[1] - 0.1
