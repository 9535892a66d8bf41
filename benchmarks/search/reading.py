"""Reading of documents into libraries: tokens per second and peak memory of `library.read`.

    python benchmarks/search/reading.py [--rounds=3] [--show]

minilm     a library of sentences reads *Hamlet* (189 kB)
smollm2    a library of entries, the pairs of kNN-LM, reads the first 20 kB of *Hamlet*

Each round runs each model in a fresh process, one after another, in alternating order. A process reads the text twice, into two
libraries. The first reading includes the compilation of the model, which takes the same time for longer texts. Peak memory is
that of the process (VmHWM) after it has loaded the model, and after the first reading. A sample does not count as clean if
other processes used more than a tenth of a core.

The script writes results/reading.json and prints the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "speed"))

from clock import DISTURBED, memory, own_cores, own_cpu, timed  # noqa: E402
from rounds import machine, store  # noqa: E402

BYTES = {"minilm": 200_000, "smollm2": 20_000}


def work(model: str) -> dict:
    """Read with one model, in this process."""
    import memtx
    from memtx.data.corpora import load_corpus

    text = dict(load_corpus("books", "").documents("test"))["hamlet"].encode()[: BYTES[model]].decode(errors="ignore")
    loaded, samples = memtx.load(model), []
    loading, peak = memory("VmHWM"), 0
    with tempfile.TemporaryDirectory(prefix="memtx-reading-") as folder:
        for name in ("first", "second"):
            library = memtx.library.create(Path(folder) / name, model, loaded=loaded)
            own = own_cpu()
            sample = timed(partial(library.read, text, document="hamlet.txt"))
            samples.append({**sample, "cpu_seconds": own_cpu() - own})
            peak = peak or memory("VmHWM")
        document = library.documents[0]
        stored = sum(path.stat().st_size for path in library.path.rglob("*") if path.is_file())
    return {
        "bytes": len(text.encode()),
        "tokens": document.tokens,
        "entries": document.entries,
        "stored_bytes": stored,
        "loading_bytes": loading,
        "peak_bytes": peak,
        "first": samples[0],
        "second": samples[1],
    }


def measure(rounds: int) -> dict[str, list[dict]]:
    """Run each model in a fresh process in each round. Returns the results of each, by round."""
    found: dict[str, list[dict]] = {model: [] for model in BYTES}
    for number in range(rounds):
        for model in BYTES if number % 2 == 0 else reversed(BYTES):
            done = subprocess.run([sys.executable, __file__, f"--worker={model}"], capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"the worker of {model} failed:\n{done.stderr[-2000:]}")
            found[model].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}: {model}: {found[model][-1]}", file=sys.stderr, flush=True)
    return found


def speed(results: list[dict], reading: str, seconds: str = "seconds") -> str:
    """Format tokens per second as "median (min, max)". seconds: of the clock, or "cpu_seconds"."""
    rates = [result["tokens"] / result[reading][seconds] for result in results]
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f}, {max(rates):,.0f})"


def markdown(found: dict[str, list[dict]]) -> str:
    """Return the table in Markdown."""
    heads = ["model", "tokens", "entries", "tokens/s", "tokens/s with compilation", "tokens per CPU second"]
    heads += ["peak MiB of loading", "peak MiB", "stored bytes per entry", "clean"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for model, results in found.items():
        one = results[0]
        clean = sum(result[reading]["others"] < DISTURBED for result in results for reading in ("first", "second"))
        loading, peak = (
            statistics.median(result[name] for result in results) / 2**20 for name in ("loading_bytes", "peak_bytes")
        )
        cells = [model, f"{one['tokens']:,}", f"{one['entries']:,}", speed(results, "second"), speed(results, "first")]
        cells += [speed(results, "second", "cpu_seconds"), f"{loading:,.0f}", f"{peak:,.0f}"]
        cells += [f"{one['stored_bytes'] / one['entries']:,.0f}", f"{clean} of {2 * len(results)}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--show", action="store_true", help="print the table of the stored results")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "reading.json")
    parser.add_argument("--worker", choices=BYTES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker)))
        return
    if not args.show:
        args.threads = len(own_cores())
        load = os.getloadavg()[1]
        store(args.out, {"machine": machine(args), "load_before": load, "readings": measure(args.rounds)})
    print(markdown(json.loads(args.out.read_text())["readings"]))


if __name__ == "__main__":
    main()
