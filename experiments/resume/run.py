"""Does a run that is killed again and again end as one that never was?

    python experiments/resume/run.py --kills=10 --signals KILL TERM

Trains twice undisturbed, then once more while killing the process at random moments and giving the same command again. The
metrics (all but tokens per second) and every bit of the final parameters must be the same. Exit status 1 if they are not.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import memtx

CONFIG = "configs/lm.py:memory=xl,size=tiny,data=books"
TIMED = ("train/tokens_per_s",)


def command(args, workdir: Path) -> list[str]:
    return [sys.executable, "-m", "memtx.cli", "train", f"--config={args.config}", f"--workdir={workdir}", *args.override]


def undisturbed(args, workdir: Path) -> float:
    began = time.monotonic()
    subprocess.run(command(args, workdir), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def killed(args, name: str, workdir: Path, seconds: float) -> list[dict]:
    """Kill at a random moment of each of the first runs, then let it end; returns when and how each run ended."""
    rng, runs = random.Random(args.seed), []
    while True:
        process = subprocess.Popen(command(args, workdir), stdout=subprocess.PIPE, text=True)
        if len(runs) >= args.kills:
            process.communicate()
            if process.returncode:
                raise SystemExit(f"the last run ended with status {process.returncode}")
            return runs
        delay = rng.uniform(0.0, seconds)
        try:
            process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            process.send_signal(getattr(signal, f"SIG{name}"))
            process.communicate()
        runs.append({"seconds": round(delay, 2), "status": process.returncode, "metrics": len(metrics(workdir))})
        print(runs[-1], flush=True)


def metrics(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append({k: v for k, v in json.loads(line).items() if k not in TIMED})
        except ValueError:
            continue  # cut off by the kill; the next run drops it
    return rows


def differences(a: Path, b: Path) -> list[str]:
    found = [] if metrics(a) == metrics(b) else ["metrics.jsonl"]
    ours, theirs = (jax.tree_util.tree_leaves_with_path(memtx.load(w).params) for w in (a, b))
    for (path, x), (_, y) in zip(ours, theirs, strict=True):
        if np.asarray(x).tobytes() != np.asarray(y).tobytes():
            found.append(jax.tree_util.keystr(path))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--signals", nargs="+", choices=["KILL", "TERM"], default=["KILL", "TERM"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="the longest time to a kill; default: a third of an undisturbed run")
    parser.add_argument("--out", type=Path, help="a JSON file for what was found")
    parser.add_argument("--workdir", type=Path, help="default: a temporary folder")
    parser.add_argument("override", nargs="*", help="--config.KEY=VALUE, after --")
    args = parser.parse_args()
    root = args.workdir or Path(tempfile.mkdtemp(prefix="memtx-resume-"))
    undisturbed(args, root / "first")  # compiles; and shows that two runs are alike
    seconds = undisturbed(args, root / "undisturbed")
    if wrong := differences(root / "first", root / "undisturbed"):
        raise SystemExit(f"two undisturbed runs differ already: {', '.join(wrong)}")
    print(f"undisturbed: {seconds:.1f} s, {len(metrics(root / 'undisturbed'))} lines of metrics", flush=True)
    found = {"config": args.config, "override": args.override, "undisturbed_seconds": round(seconds, 1)}
    for name in args.signals:
        runs = killed(args, name, root / name, args.seconds or seconds / 3)
        wrong = differences(root / "undisturbed", root / name)
        found[f"SIG{name}"] = {"runs": runs, "different": wrong}
        print(f"{len(runs)} x SIG{name}: " + (f"DIFFERENT: {', '.join(wrong)}" if wrong else "bit-identical"), flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    if not args.workdir:
        shutil.rmtree(root)
    sys.exit(any(found[f"SIG{name}"]["different"] for name in args.signals))


if __name__ == "__main__":
    main()
