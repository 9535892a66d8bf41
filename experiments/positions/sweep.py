"""Loss by position on whole plays

`tiny` models read Shakespeare's plays, in segments of 128 bytes, 200 steps. Loss by how far into a play a byte stands (of bins
that grow by 1.2: those around 332, 1,117 and 5,312), and over all with memory carried and wiped at every segment.

The claim (Dai et al. 2019, and most papers since): with a memory the loss goes on falling as a text goes on.
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
    "columns": {"bits per byte": "eval/bits_per_byte", "wiped": "eval/bits_per_byte_wiped"}
    | {f"loss at {place}": f"eval/loss/position={place}" for place in (332, 1117, 5312)},
    "figures": {"Loss by position in a play": {"y": "eval/loss", "x": "position"}},
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.02,
}


def claims(table):
    for name in MEMORIES:
        yield f"{name}: memory carried is below memory wiped", table[name, "bits per byte"].mean < table[name, "wiped"].mean
        early, later, late = (table[name, f"loss at {place}"].mean for place in (332, 1117, 5312))
        yield f"{name}: the loss falls from 300 to 1,100 bytes (0.02)", later < early - 0.02
        yield f"{name}: and from 1,100 to 5,300 (0.02)", late < later - 0.02
