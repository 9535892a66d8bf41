"""Search of 512 queries for their 32 nearest keys: memtx against `jax.lax.top_k` on all scores, and against faiss.

    python benchmarks/search/run.py [--entries=65536,262144,1048576] [--rounds=3] [--graphs=65536] [--keys=random,clustered]

memtx      `memtx.library.search.Index`, exact
top_k      `lax.top_k(queries @ keys.T, k)`, compiled
flat       faiss IndexFlatIP, exact
graph      `Index(keys, approximate=True)`: faiss HNSW, for numbers of entries up to --graphs, since it takes long to build

Keys are unit vectors of 384 float32 features: random ones, or clusters with a mean cosine of about 0.6 within a cluster. All
methods use the cores of the driver. Each runs in a separate process, one after another, in rounds of alternating order. A
sample of the time does not count if other processes used more than a tenth of a core. The CPU time of all samples counts,
because other work changes it less. A ratio compares the medians of one round. Peak memory is that of the process, less its
memory before the keys were read and less the keys, which all methods read from a memory-mapped file.

The script adds to results/search.json and prints the table. It needs faiss: pip install 'memtx[faiss]'.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "speed"))

from clock import DISTURBED, memory, own_cores, own_cpu, timed  # noqa: E402
from rounds import machine, store  # noqa: E402

FEATURES, QUERIES, K = 384, 512, 32
METHODS = ("memtx", "top_k", "flat", "graph")


def make_keys(kind: str, entries: int, folder: Path) -> Path:
    """Write keys.npy and queries.npy, and return their folder."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((max(entries // 64, 1), FEATURES), np.float32)

    def vectors(count: int) -> np.ndarray:
        made = rng.standard_normal((count, FEATURES), np.float32)
        if kind == "clustered":
            made = 0.8 * made + centre[rng.integers(0, len(centre), count)]
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    path = folder / f"{kind}{entries}"
    path.mkdir(exist_ok=True)
    keys = np.lib.format.open_memmap(path / "keys.npy", "w+", np.float32, (entries, FEATURES))
    for start in range(0, entries, 65536):
        keys[start : start + 65536] = vectors(min(65536, entries - start))
    keys.flush()
    np.save(path / "queries.npy", vectors(QUERIES))
    return path


# --- a worker: one method ---------------------------------------------------------------------------------------------------


def make_search(method: str, keys: np.ndarray):
    """Return a function from queries to (scores, indices). keys: memory-mapped."""
    if method == "flat":
        import faiss

        flat = faiss.IndexFlatIP(FEATURES)
        for start in range(0, len(keys), 65536):
            flat.add(keys[start : start + 65536])
        return lambda queries: flat.search(queries, K)
    if method == "top_k":
        import jax

        on_device = jax.device_put(keys)
        run = jax.jit(lambda queries, keys: jax.lax.top_k(queries @ keys.T, K))
        return lambda queries: jax.block_until_ready(run(queries, on_device))
    from memtx.library.search import Index

    index = Index(keys, approximate=method == "graph")
    return lambda queries: index.search(queries, K)


def work(method: str, path: Path, threads: int, samples: int, again: int) -> dict:
    """Measure one method. again: repeat a sample's search so often."""
    if method in ("flat", "graph"):
        import faiss

        faiss.omp_set_num_threads(threads)
    else:
        import jax

        jax.devices()
    import memtx.library.search  # noqa: F401

    before, keys, queries = memory("VmRSS"), np.load(path / "keys.npy", mmap_mode="r"), np.load(path / "queries.npy")
    start = time.perf_counter()
    run = make_search(method, keys)
    seconds = time.perf_counter() - start
    index = np.asarray(run(queries)[1])
    found = []
    for _ in range(samples):
        own = own_cpu()
        sample = timed(lambda: [run(queries) for _ in range(again)])
        found.append({**sample, "seconds": sample["seconds"] / again, "cpu_seconds": (own_cpu() - own) / again})
    np.save(path / f"{method}.npy", index)
    return {"build_seconds": seconds, "peak_bytes": memory("VmHWM") - before - keys.nbytes, "samples": found}


# --- the driver -------------------------------------------------------------------------------------------------------------


def measure(path: Path, methods: list[str], args) -> dict[str, list[dict]]:
    """Run the methods in rounds. Returns the results of each, by round."""
    entries = len(np.load(path / "keys.npy", mmap_mode="r"))
    found: dict[str, list[dict]] = {method: [] for method in methods}
    for number in range(args.rounds):
        for method in methods if number % 2 == 0 else reversed(methods):
            if method == "graph" and number:
                continue  # its build takes longer than all else
            options = [f"--threads={args.threads}", f"--samples={args.samples}", f"--again={max(1, 262144 // entries)}"]
            command = [sys.executable, __file__, f"--worker={method}", f"--path={path}", *options]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
            found[method].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{path.name}: round {number + 1}: {method}: {summary(found[method][-1])}", file=sys.stderr, flush=True)
    return found


def clean(result: dict) -> list[float]:
    """Return the seconds of the undisturbed samples."""
    return [sample["seconds"] for sample in result["samples"] if sample["others"] < DISTURBED]


def cpu(result: dict) -> list[float]:
    """Return the CPU seconds of all samples."""
    return [sample["cpu_seconds"] for sample in result["samples"]]


def summary(result: dict) -> str:
    """Describe one result for the progress."""
    seconds = statistics.median(sample["seconds"] for sample in result["samples"])
    cleaned = f"{len(clean(result))} of {len(result['samples'])} clean"
    return f"{seconds:.3f} s, {statistics.median(cpu(result)):.3f} s of CPU time, {cleaned}"


def row(results: list[dict], memtx: list[dict]) -> dict:
    """Return the statistics of one method. The ratios are its time over that of memtx, by round."""

    def ratios(seconds) -> list[float]:
        pairs = [(seconds(ours), seconds(result)) for ours, result in zip(memtx, results, strict=False)]
        return [statistics.median(other) / statistics.median(ours) for ours, other in pairs if ours and other]

    seconds = [s for result in results for s in clean(result)]
    return {
        "samples": sum(len(result["samples"]) for result in results),
        "clean": len(seconds),
        "seconds": statistics.median(seconds) if seconds else None,
        "cpu_seconds": statistics.median(s for result in results for s in cpu(result)),
        "ratios": ratios(clean),
        "cpu_ratios": ratios(cpu),
        "peak_mib": statistics.median(result["peak_bytes"] for result in results) / 2**20,
        "build_seconds": statistics.median(result["build_seconds"] for result in results),
    }


def recall(path: Path, method: str) -> float:
    """Return the share of the neighbours of `lax.top_k` that a method finds."""
    exact_QR, found_QR = np.load(path / "top_k.npy"), np.load(path / f"{method}.npy")
    return float((exact_QR[:, :, None] == found_QR[:, None]).any(2).mean())


def spread(ratios: list[float]) -> str:
    """Format ratios as "median (min, max)"."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})" if ratios else "no clean pair"


def markdown(tables: dict[str, dict]) -> str:
    """Return the table in Markdown. Ratios are to memtx."""
    head = [
        "keys",
        "entries",
        "method",
        "seconds",
        "ratio",
        "CPU seconds",
        "ratio",
        "peak MiB above the keys",
        "recall",
        "clean",
    ]
    lines = [f"| {' | '.join(head)} |", "|---|---:|---|---:|---|---:|---|---:|---:|---|"]
    for table in tables.values():
        for method, row in table["methods"].items():
            seconds = f"{row['seconds']:.3f}" if row["clean"] else "disturbed"
            cells = [
                table["keys"],
                f"{table['entries']:,}",
                method,
                seconds,
                spread(row["ratios"]),
                f"{row['cpu_seconds']:.3f}",
            ]
            cells += [spread(row["cpu_ratios"]), f"{row['peak_mib']:,.0f}", f"{row['recall']:.4f}"]
            cells.append(f"{row['clean']} of {row['samples']}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", default="65536,262144,1048576")
    parser.add_argument("--keys", default="random,clustered")
    parser.add_argument("--graphs", type=int, default=65536, help="the largest number of entries for which a graph is built")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(own_cores()))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "search.json")
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--again", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(args.worker, args.path, args.threads, args.samples, args.again)))
        return
    tables = json.loads(args.out.read_text())["tables"] if args.out.exists() else {}
    with tempfile.TemporaryDirectory(prefix="memtx-search-") as folder:
        for kind in args.keys.split(","):
            for entries in map(int, args.entries.split(",")):
                path = make_keys(kind, entries, Path(folder))
                results = measure(path, [m for m in METHODS if m != "graph" or entries <= args.graphs], args)
                rows = {name: row(found, results["memtx"]) | {"recall": recall(path, name)} for name, found in results.items()}
                here = {"machine": machine(args), "load": os.getloadavg()[1]}
                tables[path.name] = {"keys": kind, "entries": entries, **here, "methods": rows}
                store(args.out, {"tables": tables})
                (path / "keys.npy").unlink()
    print(markdown(tables))


if __name__ == "__main__":
    main()
