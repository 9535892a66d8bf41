"""Read one document of a million tokens in segments, to test whether memory and the cost of a segment stay constant.

    python benchmarks/speed/stream.py [--memories=window,xl] [--tokens=1000000] [--size=micro]

The model reads random bytes, 512 at a time, in one stream. The state is donated from call to call. Each memory has its default
settings and runs in a separate process. The script adds to results/stream.json and prints a table: the median CPU milliseconds
of a segment for each tenth of the stream, and the resident memory after the first tenth and after the last. CPU time depends
less than wall time on other work on the machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "stream.json"


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def read(memory: str, size: str, tokens: int, segment: int, rows: int) -> list[dict]:
    """Read the stream with one memory and return times and resident memory for each of `rows` parts."""
    import jax
    import numpy as np

    import memtx
    from memtx.runs.presets import preset
    from memtx.training.cpu import keep_pages

    keep_pages()
    lm = memtx.build(memtx.get_config(model=preset(memory, size) | {"scan": False}), vocab_size=264)
    params, state = lm.init(jax.random.key(0)), jax.jit(lambda: lm.init_state(1))()
    step = jax.jit(lm, donate_argnums=2)
    rng, found, spent, calls = np.random.default_rng(0), [], [], tokens // segment
    for call in range(1, calls + 1):
        text = rng.integers(0, 256, (1, segment), np.int32)
        start = time.perf_counter(), time.process_time()
        logits, state = step(params, text, state)
        jax.block_until_ready((logits, state))
        spent.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        if call == 1:
            spent.clear()  # the first call compiles
        if call % (calls // rows) == 0:
            wall, cpu = (round(1000 * statistics.median(times), 2) for times in zip(*spent, strict=True))
            found.append({"tokens": call * segment, "wall_ms": wall, "cpu_ms": cpu, "resident_mib": round(resident(), 1)})
            spent.clear()
    assert int(state.position_B[0]) == calls * segment
    return found


def markdown(results: dict[str, list[dict]]) -> str:
    """Return the table in Markdown."""
    rows = max(map(len, results.values()))
    head = " | ".join(str(i + 1) for i in range(rows))
    lines = [f"| memory | {head} | last / first | resident MiB |", "|---" + "|---:" * (rows + 2) + "|"]
    for memory, found in results.items():
        cpu, (first, *_, last) = [row["cpu_ms"] for row in found], [row["resident_mib"] for row in found]
        cells = [*(f"{ms:.1f}" for ms in cpu), f"{cpu[-1] / cpu[0]:.2f}", f"{first:.0f}, {last:.0f}"]
        lines.append(f"| {memory} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", default="", help="names separated by commas (all memories of a decoder by default)")
    parser.add_argument("--size", default="micro")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--segment", type=int, default=512)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(read(args.worker, args.size, args.tokens, args.segment, args.rows)))
        return
    same = [f"--{name}={getattr(args, name)}" for name in ("size", "tokens", "segment", "rows")]
    results = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for memory in args.memories.split(",") if args.memories else every_memory():
        done = subprocess.run(
            [sys.executable, __file__, f"--worker={memory}", *same], check=True, stdout=subprocess.PIPE, text=True
        )
        results[memory] = json.loads(done.stdout.splitlines()[-1])
        args.out.parent.mkdir(exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(markdown(results))


def every_memory() -> list[str]:
    """Return the names of the memories of a decoder."""
    from memtx.memory import MEMORIES

    return [name for name, cls in MEMORIES.items() if cls.causal and not cls.encoded]


if __name__ == "__main__":
    main()
