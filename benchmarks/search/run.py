"""Search of 512 queries for their 32 nearest keys: memtx against `jax.lax.top_k` on all scores, and against faiss.

    python benchmarks/search/run.py [--entries=65536,262144,1048576] [--rounds=3] [--graphs=65536] [--keys=random,clustered]

memtx      `memtx.library.search.Index`, exact
top_k      `lax.top_k(queries @ keys.T, k)`, compiled
flat       faiss IndexFlatIP, exact
graph      `Index(keys, approximate=True)`: faiss HNSW, for numbers of entries up to --graphs, since it takes long to build

Keys are unit vectors of 384 float32 features: random ones, or clusters with a mean cosine of about 0.6 within a cluster. All
methods use the cores of the driver. Each runs in a separate process, one after another, in rounds of alternating order. A
sample does not count if other processes used more than a tenth of a core. A ratio compares the medians of one round. Peak
memory is that of the process, less its memory before the keys were read and less the keys.

The script writes results/search.json and prints the table. It needs faiss: pip install 'memtx[faiss]'.
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

from clock import DISTURBED, own_cores, timed  # noqa: E402
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


# --- a worker: one method -------------------------------------------------------------------------------------------------------


def memory(field: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field))) * 1024


def make_search(method: str, keys: np.ndarray):
    """Return a function from queries to (scores, indices). keys: memory-mapped; each method reads them in full."""
    if method == "flat":
        import faiss

        flat = faiss.IndexFlatIP(FEATURES)
        for start in range(0, len(keys), 65536):
            flat.add(np.array(keys[start : start + 65536]))
        return lambda queries: flat.search(queries, K)
    if method == "top_k":
        import jax

        on_device = jax.device_put(np.array(keys))
        run = jax.jit(lambda queries, keys: jax.lax.top_k(queries @ keys.T, K))
        return lambda queries: jax.block_until_ready(run(queries, on_device))
    from memtx.library.search import Index

    index = Index(keys if method == "graph" else np.array(keys), approximate=method == "graph")
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
    found = [timed(lambda: [run(queries) for _ in range(again)]) for _ in range(samples)]
    for sample in found:
        sample["seconds"] /= again
    np.save(path / f"{method}.npy", index)
    return {"build_seconds": seconds, "peak_bytes": memory("VmHWM") - before - keys.nbytes, "samples": found}


# --- the driver -----------------------------------------------------------------------------------------------------------------


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


def summary(result: dict) -> str:
    """Describe one result for the progress."""
    seconds = statistics.median(sample["seconds"] for sample in result["samples"])
    return f"{seconds:.3f} s, {len(clean(result))} of {len(result['samples'])} clean"


def row(results: list[dict], memtx: list[dict]) -> dict:
    """Return the statistics of one method. ratios: its time relative to that of memtx, by round."""
    seconds = [s for result in results for s in clean(result)]
    pairs = [(clean(ours), clean(result)) for ours, result in zip(memtx, results, strict=False)]
    return {
        "samples": sum(len(result["samples"]) for result in results),
        "clean": len(seconds),
        "seconds": statistics.median(seconds) if seconds else None,
        "ratios": [statistics.median(other) / statistics.median(ours) for ours, other in pairs if ours and other],
        "peak_mib": statistics.median(result["peak_bytes"] for result in results) / 2**20,
        "build_seconds": statistics.median(result["build_seconds"] for result in results),
    }


def recall(path: Path, method: str) -> float:
    """Return the share of the neighbours of `lax.top_k` that a method finds."""
    exact_QR, found_QR = np.load(path / "top_k.npy"), np.load(path / f"{method}.npy")
    return float((exact_QR[:, :, None] == found_QR[:, None]).any(2).mean())


def markdown(tables: dict[str, dict]) -> str:
    """Return the table in Markdown."""
    lines = [
        "| keys | entries | method | seconds | time / time of memtx (min, max) | peak MiB above the keys | recall | clean |"
    ]
    lines.append("|---|---:|---|---:|---|---:|---:|---|")
    for table in tables.values():
        for method, row in table["methods"].items():
            seconds = f"{row['seconds']:.3f}" if row["clean"] else "disturbed"
            ratios = row["ratios"]
            ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})" if ratios else "no clean pair"
            cells = [table["keys"], f"{table['entries']:,}", method, seconds, ratio, f"{row['peak_mib']:,.0f}"]
            lines.append(f"| {' | '.join([*cells, f'{row["recall"]:.4f}', f'{row["clean"]} of {row["samples"]}'])} |")
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
    tables = {}
    with tempfile.TemporaryDirectory(prefix="memtx-search-") as folder:
        for kind in args.keys.split(","):
            for entries in map(int, args.entries.split(",")):
                path = make_keys(kind, entries, Path(folder))
                results = measure(path, [m for m in METHODS if m != "graph" or entries <= args.graphs], args)
                rows = {name: row(found, results["memtx"]) | {"recall": recall(path, name)} for name, found in results.items()}
                tables[path.name] = {"keys": kind, "entries": entries, "methods": rows}
                store(args.out, {"machine": machine(args), "load": os.getloadavg(), "tables": tables})
                (path / "keys.npy").unlink()
    print(markdown(tables))


if __name__ == "__main__":
    main()
