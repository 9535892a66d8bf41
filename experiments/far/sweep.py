"""Far beyond the window and the trained lengths: Block-Recurrent and Titans

The task is to find a needle among noise with two layers of width 64. Attention sees 16 tokens (in MAC, its segment of 16).
Earlier tokens are kept in 16 recurrent vectors, or in an MLP that is trained while it reads, with steps of up to 1 per token
(lr = chunk, as in experiments/titans) or 1/4 (MAC). Titans is trained with distances of up to 4 windows and tested with up to
32, eight times as far. Block-Recurrent is trained with up to 4, then with up to 16. Noise uses separate tokens, and chance is
1/16.

The claims: recurrent states reach where attention cannot (Hutchins et al. 2022), and the memory of Titans lasts well beyond
the lengths that it was trained on (Behrouz et al. 2024).
"""

from memtx.sweep import product

TASK = "configs/task.py:task=needle,size=micro,memory={}"
WINDOW = 16
DISTANCES = (4 * WINDOW, 16 * WINDOW, 32 * WINDOW)
TITANS = ("titans_mac", "titans_mag", "titans_mal")

config = TASK.format("window")
common = {
    "data.task.distances": (8, 16, 32, 64),
    "data.task.before": 5,
    "data.segment": 24,
    "train.segments": 3,
    "train.batch": 32,
    "train.steps": 400,
    "optim.lr": 3e-3,
    "optim.warmup": 50,
    "eval.every": 0,
    "eval.examples": 1024,
    "eval.task": {"distances": DISTANCES},
}


def sweep():
    yield from product({"seed": [0, 1, 2]}, [{"memory.window.window": WINDOW}, *recurrent(), *map(titans, TITANS)])


def recurrent():
    """Learns at short distances first."""
    sizes = {f"memory.block_recurrent.{key}": WINDOW for key in ("block", "window", "states")}
    sizes |= {"memory.window.window": WINDOW}  # of the layer before
    near = common["data.task.distances"]
    further = {"data.task.distances": (*near, 256), "data.curriculum": ((250, {"distances": near}),)}
    further |= {"train.segments": 11, "train.steps": 500}
    for gate in ("fixed", "lstm"):
        yield {"config": TASK.format("block_recurrent"), "memory.block_recurrent.gate": gate, **sizes, **further}


def titans(name: str) -> dict:
    """MAC learns slower, and with steps of up to 1 a token had not learned after 400."""
    if name == "titans_mac":
        return {"config": TASK.format(name), "memory.titans_mac.chunk": WINDOW, "memory.titans_mac.lr": 4, "train.steps": 1000}
    return {"config": TASK.format(name), **{f"memory.{name}.{key}": WINDOW for key in ("window", "chunk", "lr")}}


report = {
    "rows": ("memory", "memory.block_recurrent.gate"),
    "columns": {f"{d // WINDOW} windows": {"metric": f"eval/accuracy/distance={d}", "digits": 2} for d in DISTANCES},
    "figures": {"Accuracy by distance": {"y": "eval/accuracy", "x": "distance"}},
    "varies": ("params", "flops_per_token", "state_bytes"),
    "floor": 0.1,
}


def claims(table):
    window = table["window", "default", "32 windows"].mean
    yield (
        "the window does not reach (below 0.2)",
        max(table["window", "default", f"{n} windows"].mean for n in (4, 16, 32)) < 0.2,
    )
    for gate in ("fixed", "lstm"):
        yield (
            f"block_recurrent with {gate} gates answers 16 windows back (0.9)",
            table["block_recurrent", gate, "16 windows"].mean > 0.9,
        )
    for name in TITANS:
        yield (
            f"{name} answers at 8 times the trained length, above the window by 0.3",
            table[name, "default", "32 windows"].mean > window + 0.3,
        )
