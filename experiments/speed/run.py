"""Train-step speed of `small` with full, window and xl, beside a plain PyTorch decoder of the same shape.

    python experiments/speed/run.py --torch_python=PATH [--rounds=5] [--models=full,window,xl]

Every round runs each worker once, one after the other, in a process of its own, so that slow hours of the machine fall on all
alike. Samples during which other processes took more than a tenth of a core do not count. Ratios are of a round's median to
the median of torch in the same round. Both sides keep freed memory (memtx.training.cpu; torch by environment variables).
Writes results/train_step.json and prints the table.

FLOPs are counted from shapes, 2 per multiply-add: for a weight 6 per token (forward, dx, dW), for attention only the
(query, key) pairs that the mask lets through: scores and values, 4 head_dim heads per pair forward, as much again for each of
the gradients of queries and of keys. A memory that gets no gradient costs no gradients of keys.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from clock import DISTURBED

HERE = Path(__file__).parent
KEEP_PAGES = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}  # for torch
VOCAB, WIDTH, LAYERS, HEADS, HEAD_DIM, FF, MEMORY = 264, 256, 4, 4, 64, 704, 512


def flops_per_step(model: str, batch: int, time: int) -> float:
    inner = HEADS * HEAD_DIM
    tokens = batch * time
    weights = LAYERS * (4 * WIDTH * inner + 3 * WIDTH * FF) + WIDTH * VOCAB
    total = 6 * weights * tokens
    own = batch * time * (time + 1) / 2  # causal pairs
    if model in ("full", "torch"):
        return total + LAYERS * own * 12 * inner
    if model == "window":  # MEMORY keys for every query, its own included
        memory = tokens * MEMORY - batch * sum(min(t + 1, MEMORY) for t in range(time))
        own = tokens * MEMORY - memory
        return total + LAYERS * (own * 12 + memory * 8) * inner
    # xl: all of the memory, projected anew (forward and dW); per pair 6 head_dim heads: keys, positions, values
    memory = tokens * MEMORY
    projections = batch * MEMORY * 4 * 2 * WIDTH * inner
    positions = (time + MEMORY) * 4 * WIDTH * inner
    gradients = own * 18 + memory * (6 + 6 + 2)  # the code of a distance has a gradient also where the key has none
    return total + LAYERS * (projections + positions + gradients * inner)


def work(python: str, script: str, model: str, args) -> dict:
    command = [python, str(HERE / script), f"--model={model}", f"--threads={args.threads}"]
    if model != "matmul":
        command += [f"--batch={args.batch}", f"--segment={args.segment}", f"--steps={args.steps}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **KEEP_PAGES})
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def clean(result: dict) -> list[float]:
    return [s["seconds"] for s in result["samples"] if s["others"] < DISTURBED]


def summary(rounds: list[dict], args) -> dict:
    """Medians over clean samples; ratios by round."""
    rate = statistics.median(max(max(r[f"{side} matmul"]["rates"].values()) for side in ("jax", "torch")) for r in rounds)
    tokens = args.batch * args.segment
    table = {}
    for model in (*args.models, "torch"):
        seconds = [s for r in rounds for s in clean(r[model])]
        taken = sum(len(r[model]["samples"]) for r in rounds)
        ratios = [
            statistics.median(clean(r["torch"])) / statistics.median(clean(r[model]))
            for r in rounds
            if clean(r["torch"]) and clean(r[model])
        ]
        row = {"samples": len(seconds), "disturbed": taken - len(seconds), "ratios": ratios}
        row["peak_mib"] = statistics.median(r[model]["peak_bytes"] for r in rounds) / 2**20
        if seconds:
            median = statistics.median(seconds)
            flops = flops_per_step(model, args.batch, args.segment)
            row |= {
                "tokens_per_s": [tokens / max(seconds), tokens / median, tokens / min(seconds)],
                "gflops": flops / median / 1e9,
                "share_of_matmul": flops / median / 1e9 / rate,
            }
        table[model] = row
    return {"matmul_gflops": rate, "table": table}


def markdown(result: dict) -> str:
    lines = [
        f"Machine's own float32 matmul rate: {result['matmul_gflops']:.0f} GFLOP/s.",
        "",
        "| model | tokens/s (min, max) | ratio to torch (min, max) | share of matmul rate | peak MiB | clean samples |",
        "|---|---|---|---|---|---|",
    ]
    for model, row in result["table"].items():
        count = f"{row['samples']} of {row['samples'] + row['disturbed']}"
        if not row["samples"]:
            lines.append(f"| {model} | disturbed | | | {row['peak_mib']:.0f} | {count} |")
            continue
        low, median, high = row["tokens_per_s"]
        ratios = row["ratios"]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})" if ratios else "no clean pair"
        share = f"{100 * row['share_of_matmul']:.0f} %"
        lines.append(
            f"| {model} | {median:,.0f} ({low:,.0f}, {high:,.0f}) | {ratio} | {share} | {row['peak_mib']:.0f} | {count} |"
        )
    return "\n".join(lines)


def main(args):
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": args.threads}
    settings = {"batch": args.batch, "segment": args.segment, "disturbed_above_cores": DISTURBED}
    rounds = []
    for number in range(args.rounds):
        results = {
            "jax matmul": work(sys.executable, "train_step.py", "matmul", args),
            "torch matmul": work(args.torch_python, "torch_decoder.py", "matmul", args),
        }
        order = [*args.models, "torch"]
        for model in order[number % len(order) :] + order[: number % len(order)]:
            python, script = (args.torch_python, "torch_decoder.py") if model == "torch" else (sys.executable, "train_step.py")
            results[model] = work(python, script, model, args)
            print(f"round {number + 1}: {model}: {len(clean(results[model]))} clean samples", file=sys.stderr, flush=True)
        rounds.append(results)
        result = {"machine": machine, "settings": settings, **summary(rounds, args), "rounds": rounds}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")  # a run cut short leaves its results
        print(f"after round {number + 1}\n{markdown(result)}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch_python", required=True, help="a python that has torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--segment", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--models", type=lambda text: text.split(","), default=["full", "window", "xl"])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "train_step.json")
    main(parser.parse_args())
