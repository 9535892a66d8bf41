"""Timed samples that know whether their cores were theirs alone, and the peak memory of this process.

Standard library only: the JAX and the torch worker both import it.
"""

import json
import os
import resource
import sys
import time
from functools import partial

DISTURBED = 0.1  # cores; a sample during which other processes used more than this does not count


def own_cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cores_cpu() -> float | None:
    """CPU seconds that all processes (and the hypervisor) have used since boot on the cores that this process may run on.

    None where /proc/stat is missing.
    """
    try:
        with open("/proc/stat") as stat:
            lines = [line.split() for line in stat if line.startswith("cpu")]
    except OSError:
        return None
    ticks, mine = 0, {f"cpu{core}" for core in own_cores()}
    for _, user, nice, system, _idle, _iowait, irq, softirq, steal, *_ in (line for line in lines if line[0] in mine):
        ticks += sum(map(int, (user, nice, system, irq, softirq, steal)))
    return ticks / os.sysconf("SC_CLK_TCK")


def own_cpu() -> float:
    times = os.times()
    return times.user + times.system


def timed(f) -> dict:
    """Run f once -> {seconds, others: cores of ours that others used meanwhile}.

    Without /proc/stat, others is what the load average exceeds our own use by.
    """
    before, own, start = cores_cpu(), own_cpu(), time.perf_counter()
    f()
    seconds = time.perf_counter() - start
    cores, after = (own_cpu() - own) / seconds, cores_cpu()
    used = os.getloadavg()[0] if before is None or after is None else (after - before) / seconds
    return {"seconds": seconds, "others": max(0.0, used - cores)}


def matmul_rates(make, sizes=(512, 1024, 2048), repeats=5) -> dict:
    """GFLOP/s of square float32 matmuls: `make(n)` returns a function that does one and waits. Best of `repeats` per size."""
    rates = {}
    for n in sizes:
        calls = max(1, round(2e10 / (2 * n**3)))
        multiply = partial(_repeat, make(n), calls)
        multiply()
        seconds = min(timed(multiply)["seconds"] for _ in range(repeats))
        rates[str(n)] = calls * 2 * n**3 / seconds / 1e9
    return rates


def _repeat(f, times: int) -> None:
    for _ in range(times):
        f()


def report(**result) -> None:
    """Print the one line of JSON that the driver reads."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({**result, "peak_bytes": peak}))
