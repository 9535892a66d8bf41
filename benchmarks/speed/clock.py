"""Timed samples that record the load of other processes on the same cores, and the peak memory of this process.

This file uses the standard library only, because both the JAX and the torch worker import it.
"""

import json
import os
import resource
import sys
import time
from functools import partial

DISTURBED = 0.1  # cores; a sample does not count if other processes used more than this meanwhile


def own_cores() -> list[int]:
    """Return the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def cores_cpu() -> float | None:
    """Return the CPU seconds that all processes and the hypervisor have used since boot on the cores of this process.

    Return None if /proc/stat is missing.
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
    """Return the CPU seconds of this process."""
    times = os.times()
    return times.user + times.system


def timed(f) -> dict:
    """Run f once and return its seconds and `others`, the number of our cores that other processes used meanwhile.

    Without /proc/stat, `others` is the load average minus our own use.
    """
    before, own, start = cores_cpu(), own_cpu(), time.perf_counter()
    f()
    seconds = time.perf_counter() - start
    cores, after = (own_cpu() - own) / seconds, cores_cpu()
    used = os.getloadavg()[0] if before is None or after is None else (after - before) / seconds
    return {"seconds": seconds, "others": max(0.0, used - cores)}


def matmul_rates(make, sizes=(512, 1024, 2048), repeats=5) -> dict:
    """Return the best GFLOP/s of `repeats` runs for each size of square float32 matmuls.

    `make(n)` returns a function that multiplies two n x n matrices and waits for the result.
    """
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


def memory(field: str) -> int:
    """Return VmRSS or VmHWM (the peak) of this process in bytes, from /proc.

    `ru_maxrss` is no peak of this process: on Linux it starts at the memory of the process that started this one.
    """
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) * 1024


def report(**result) -> None:
    """Print the result and the peak memory as one line of JSON for the driver."""
    if sys.platform == "darwin":  # has no /proc, and starts ru_maxrss at 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    else:
        peak = memory("VmHWM")
    print(json.dumps({**result, "peak_bytes": peak}))
