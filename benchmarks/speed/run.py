"""Train-step speed of `small` with full, window and xl, compared with a plain PyTorch decoder of the same shape.

    python benchmarks/speed/run.py --torch_python=PATH [--rounds=5] [--models=full,window,xl]

rounds.py describes the measurement. The script writes results/train_step.json and prints the table.

FLOPs are counted from shapes, 2 per multiply-add. A weight costs 6 per token (forward, dx, dW). Attention counts only the
(query, key) pairs that the mask lets through: 4 head_dim heads per pair for scores and values in the forward pass, and as much
again for the gradients of queries and for the gradients of keys. A memory that gets no gradient costs no gradients of keys.
"""

import statistics
import sys

from clock import DISTURBED
from rounds import arguments, machine, measure, ratio, row, speed, store

VOCAB, WIDTH, LAYERS, HEADS, HEAD_DIM, FF, MEMORY = 264, 256, 4, 4, 64, 704, 512


def flops_per_step(model: str, batch: int, time: int) -> float:
    """Return the FLOPs of a train step of `batch` rows of `time` tokens."""
    inner = HEADS * HEAD_DIM
    tokens = batch * time
    weights = LAYERS * (4 * WIDTH * inner + 3 * WIDTH * FF) + WIDTH * VOCAB
    total = 6 * weights * tokens
    own = batch * time * (time + 1) / 2  # causal pairs within the segment
    if model in ("full", "torch"):
        return total + LAYERS * own * 12 * inner
    if model == "window":  # each query sees MEMORY keys, its own included
        memory = tokens * MEMORY - batch * sum(min(t + 1, MEMORY) for t in range(time))
        own = tokens * MEMORY - memory
        return total + LAYERS * (own * 12 + memory * 8) * inner
    # xl projects the whole memory again (forward and dW). A pair costs 6 head_dim heads: keys, positions and values.
    memory = tokens * MEMORY
    projections = batch * MEMORY * 4 * 2 * WIDTH * inner
    positions = (time + MEMORY) * 4 * WIDTH * inner
    gradients = own * 18 + memory * (6 + 6 + 2)  # the code of a distance has a gradient even if the key has none
    return total + LAYERS * (projections + positions + gradients * inner)


def main(args):
    options = {"batch": args.batch, "segment": args.segment, "steps": args.steps, "threads": args.threads}
    ours, torch = (sys.executable, "train_step.py"), (args.torch_python, "torch_decoder.py")
    jobs = {f"{name} matmul": (*side, {"model": "matmul"}) for name, side in (("jax", ours), ("torch", torch))}
    jobs |= {model: (*ours, {"model": model, **options}) for model in args.models}
    jobs["torch"] = (*torch, {"model": "torch", **options})

    def summary(rounds: list[dict]) -> dict:
        rate = statistics.median(max(max(r[f"{side} matmul"]["rates"].values()) for side in ("jax", "torch")) for r in rounds)
        table = {model: row(rounds, model, "torch", args.batch * args.segment) for model in (*args.models, "torch")}
        for model, found in table.items():
            if "seconds" in found:
                found["gflops"] = flops_per_step(model, args.batch, args.segment) / found["seconds"] / 1e9
                found["share_of_matmul"] = found["gflops"] / rate
        return {"matmul_gflops": rate, "table": table}

    settings = {"batch": args.batch, "segment": args.segment, "disturbed_above_cores": DISTURBED}
    for rounds in measure(jobs, args.rounds):
        result = {"machine": machine(args), "settings": settings, **summary(rounds), "rounds": rounds}
        store(args.out, result)  # after each round, so that an interrupted run leaves results
        print(f"after round {len(rounds)}\n{markdown(result)}", flush=True)


def markdown(result: dict) -> str:
    """Return the table in Markdown."""
    lines = [
        f"Machine's own float32 matmul rate: {result['matmul_gflops']:.0f} GFLOP/s.",
        "",
        "| model | tokens/s (min, max) | ratio to torch (min, max) | share of matmul rate | peak MiB | clean samples |",
        "|---|---|---|---|---|---|",
    ]
    for model, found in result["table"].items():
        share = f"{100 * found['share_of_matmul']:.0f} %" if "share_of_matmul" in found else ""
        count = f"{found['samples']} of {found['samples'] + found['disturbed']}"
        lines.append(f"| {model} | {speed(found)} | {ratio(found)} | {share} | {found['peak_mib']:.0f} | {count} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = arguments(__doc__, "train_step.json")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--torch_python", required=True, help="a Python with torch")
    parser.add_argument("--models", type=lambda text: text.split(","), default=["full", "window", "xl"])
    main(parser.parse_args())
