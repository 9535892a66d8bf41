"""Loss by position on whole plays

Models of size `tiny` read Shakespeare's plays in segments of 128 bytes and train for 200 steps. The table shows the loss by
position in the play, in bins that grow by a factor of 1.2 (those around 332, 1,117 and 5,312 bytes). It also shows bits per
byte over all positions, with the state carried and with the state wiped at each segment.

The claim (Dai et al. 2019, and most papers since): with a memory, the loss keeps falling as a text gets longer.
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
    | {f"loss at {position}": f"eval/loss/position={position}" for position in (332, 1117, 5312)},
    "figures": {"Loss by position in a play": {"y": "eval/loss", "x": "position"}},
    "varies": ("state_bytes", "params", "flops_per_token"),
    "floor": 0.02,
}


def claims(table):
    for name in MEMORIES:
        yield (
            f"{name}: fewer bits per byte with the state carried than with it wiped",
            table[name, "bits per byte"].mean < table[name, "wiped"].mean,
        )
        early, later, late = (table[name, f"loss at {position}"].mean for position in (332, 1117, 5312))
        yield f"{name}: the loss falls by more than 0.02 from 300 to 1,100 bytes", later < early - 0.02
        yield f"{name}: the loss falls by more than 0.02 from 1,100 to 5,300 bytes", late < later - 0.02
