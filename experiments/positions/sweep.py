"""Loss by position on whole plays

`tiny` models read Shakespeare's plays, in segments of 128 bytes, 200 steps. With a memory the loss goes on falling as a play
goes on; with the memory wiped at every segment it cannot.
"""

from memtx.sweep import product

MEMORIES = ("window", "gated_deltanet")
TEXT = "configs/lm.py:size=tiny,data=books,memory={}"

config = TEXT.format("window")
common = {"train.steps": 200, "eval.every": 0, "eval.sample_tokens": 0}


def sweep():
    return product({"seed": [0, 1, 2]}, {"config": [TEXT.format(name) for name in MEMORIES]})


report = {
    "rows": "memory",
    "columns": {"bits per byte": "eval/bits_per_byte", "wiped": "eval/bits_per_byte_wiped"},
    "figures": {"Loss by position in a play": {"y": "eval/loss", "x": "position"}},
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.02,
}


def claims(table):
    for name in MEMORIES:
        yield f"{name}: memory carried is below memory wiped", table[name, "bits per byte"].mean < table[name, "wiped"].mean
