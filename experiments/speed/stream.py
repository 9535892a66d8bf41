"""One document of a million tokens, read in segments: is memory flat, and does a segment cost the same at the end?

    python experiments/speed/stream.py [--memories=window,xl] [--tokens=1000000]

The tiny model reads random bytes, 512 at a time, one stream; the state is donated from call to call. Each memory in a process
of its own. Writes results/stream.json and prints the table: by tokens read, resident memory and the median milliseconds of a
segment since the row before.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SETTINGS = {"window": {"window": 512}, "xl": {"segment": 512, "memory": 512}}


def resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def read(memory: str, tokens: int, segment: int, rows: int) -> list[dict]:
    import jax
    import numpy as np

    import memtx
    from memtx.models.presets import preset
    from memtx.training.cpu import keep_pages

    keep_pages()
    config = memtx.get_config(model=preset(memory, "tiny") | {"scan": False}, memory={memory: SETTINGS[memory]})
    lm = memtx.build(config, vocab_size=264)
    params, state = lm.init(jax.random.key(0)), jax.jit(lambda: lm.init_state(1))()
    step = jax.jit(lm, donate_argnums=2)
    rng, found, spent, began = np.random.default_rng(0), [], [], time.monotonic()
    for call in range(1, tokens // segment + 1):
        text = rng.integers(0, 256, (1, segment), np.int32)
        start = time.monotonic()
        logits, state = step(params, text, state)
        jax.block_until_ready((logits, state))
        spent.append(1000 * (time.monotonic() - start))
        if call == 1:
            spent.clear()  # compiled
        if call % (tokens // segment // rows) == 0:
            seconds = time.monotonic() - began
            row = {"tokens": call * segment, "seconds": round(seconds, 1), "resident_mib": round(resident(), 1)}
            found.append(row | {"segment_ms": round(statistics.median(spent), 2)})
            spent.clear()
    assert int(state.position_B[0]) == call * segment
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memories", default="window,xl")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--segment", type=int, default=512)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(read(args.worker, args.tokens, args.segment, args.rows)))
        return
    results = {}
    for memory in args.memories.split(","):
        same = [f"--tokens={args.tokens}", f"--segment={args.segment}", f"--rows={args.rows}"]
        done = subprocess.run(
            [sys.executable, __file__, f"--worker={memory}", *same], check=True, stdout=subprocess.PIPE, text=True
        )
        results[memory] = json.loads(done.stdout.splitlines()[-1])
        print(f"\n{memory}\n| tokens read | seconds | resident MiB | ms a segment |\n|---:|---:|---:|---:|")
        for row in results[memory]:
            print(f"| {row['tokens']:,} | {row['seconds']} | {row['resident_mib']} | {row['segment_ms']} |")
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "stream.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
