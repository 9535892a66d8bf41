"""Check that a run which is killed again and again ends like a run that is not.

    python benchmarks/resume/run.py --kills=10 --signals KILL TERM

The script trains twice without interruption. For each signal it then trains once more, kills the process at random moments and
repeats the same command. The metrics (except tokens per second) and every bit of the final parameters must be equal. The exit
status is 1 if they are not.
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
    """Return the `memtx train` command of a run in `workdir`."""
    return [sys.executable, "-m", "memtx.cli", "train", f"--config={args.config}", f"--workdir={workdir}", *args.override]


def undisturbed(args, workdir: Path) -> float:
    """Train without interruption and return the seconds that it took."""
    began = time.monotonic()
    subprocess.run(command(args, workdir), check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def killed(args, name: str, workdir: Path, seconds: float) -> list[dict]:
    """Kill each of the first runs at a random moment, then let the last one end. Return when and how each killed run ended."""
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
    """Return the rows of metrics.jsonl without their timings."""
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
    """Return the names of the parameters that differ between two workdirs, and "metrics.jsonl" if the metrics do."""
    found = [] if metrics(a) == metrics(b) else ["metrics.jsonl"]
    leaves_a, leaves_b = (jax.tree_util.tree_leaves_with_path(memtx.load(w).params) for w in (a, b))
    for (path, x), (_, y) in zip(leaves_a, leaves_b, strict=True):
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
    parser.add_argument("--out", type=Path, help="a JSON file for the results")
    parser.add_argument("--workdir", type=Path, help="default: a temporary folder")
    parser.add_argument("override", nargs="*", help="--config.KEY=VALUE, after --")
    args = parser.parse_args()
    root = args.workdir or Path(tempfile.mkdtemp(prefix="memtx-resume-"))
    undisturbed(args, root / "first")  # fills the compilation cache, and shows that two undisturbed runs are equal
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
