"""Run workers in turn, each in a separate process, in rounds. run.py and peers.py share this file.

Every other round runs in reverse order, so that slow periods of the machine affect all workers equally. A sample does not count
if other processes used more than a tenth of a core. A ratio compares the medians of one round. Both sides keep freed memory:
memtx through memtx.training.cpu, torch through environment variables with one heap (three made torch no faster). Workers run on
the cores that the driver may use, so `taskset` on the driver pins all. They inherit JAX_NUM_CPU_DEVICES, LD_PRELOAD and
MALLOC_CONF, which are stored with the results.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from clock import DISTURBED, own_cores

HERE = Path(__file__).parent
KEEP_PAGES = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}  # for torch
Job = tuple[str, str, dict]  # python, script, options


def arguments(doc: str | None, result: str, **defaults) -> argparse.ArgumentParser:
    """Return the flags that the drivers share. result: the name of the file in results/ that --out defaults to."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--segment", type=int, default=512)
    parser.add_argument("--threads", type=int, default=len(own_cores()))
    parser.add_argument("--out", type=Path, default=HERE / "results" / result)
    parser.set_defaults(**defaults)
    return parser


def work(python: str, script: str, options: dict) -> dict:
    """Run one worker in a process and return its result. Exit with the worker's error if it fails."""
    command = [python, str(HERE / script), *(f"--{name}={value}" for name, value in options.items())]
    environment = os.environ if python == sys.executable else {**os.environ, **KEEP_PAGES}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def clean(result: dict) -> list[float]:
    """Return the seconds of the undisturbed samples."""
    return [s["seconds"] for s in result["samples"] if s["others"] < DISTURBED]


def row(rounds: list[dict], name: str, against: str, tokens: int) -> dict:
    """Return the statistics of one job over all rounds, and its speed relative to the job `against` in each round."""
    seconds = [s for r in rounds for s in clean(r[name])]
    taken = sum(len(r[name]["samples"]) for r in rounds)
    pairs = [(clean(r[against]), clean(r[name])) for r in rounds]
    found = {
        "samples": len(seconds),
        "disturbed": taken - len(seconds),
        "ratios": [statistics.median(base) / statistics.median(own) for base, own in pairs if base and own],
        "peak_mib": statistics.median(r[name]["peak_bytes"] for r in rounds) / 2**20,
        "params": rounds[0][name]["params"],
    }
    if seconds:
        found["seconds"] = statistics.median(seconds)
        found["tokens_per_s"] = [tokens / max(seconds), tokens / found["seconds"], tokens / min(seconds)]
    return found


def speed(row: dict) -> str:
    """Format the tokens per second of a row as "median (min, max)"."""
    if not row["samples"]:
        return "disturbed"
    low, median, high = row["tokens_per_s"]
    return f"{median:,.0f} ({low:,.0f}, {high:,.0f})"


def ratio(row: dict) -> str:
    """Format the ratios of a row as "median (min, max)"."""
    ratios = row["ratios"]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})" if ratios else "no clean pair"


def measure(jobs: dict[str, Job], count: int) -> Iterator[list[dict]]:
    """Run all jobs, round by round. Yield the list of rounds so far after each round."""
    rounds = []
    for number in range(count):
        results = {}
        for name in sorted(jobs, key=list(jobs).index, reverse=number % 2 == 1):
            results[name] = work(*jobs[name])
            if "samples" in results[name]:
                print(f"round {number + 1}: {name}: {len(clean(results[name]))} clean samples", file=sys.stderr, flush=True)
        rounds.append(results)
        yield rounds


def machine(args) -> dict:
    """Describe the machine, the cores and the environment of the workers."""
    given = {name: os.environ[name] for name in ("JAX_NUM_CPU_DEVICES", "LD_PRELOAD", "MALLOC_CONF") if name in os.environ}
    processor = platform.processor() or platform.machine()
    return {"processor": processor, "cores": own_cores(), "threads": args.threads, "environment": given}


def store(path: Path, result: dict) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
