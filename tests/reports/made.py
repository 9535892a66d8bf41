"""Runs as a sweep would leave them, and reports of them."""

from pathlib import Path

from memtx.reports.runs import Run
from memtx.reports.study import Study, report
from memtx.reports.table import tabulate

ACCURACIES = {"gla": (0.1, 0.2, 0.6), "deltanet": (0.9, 0.8, 1.0)}  # means 0.3 and 0.9, sample deviations 0.2646 and 0.1


def runs(accuracies=ACCURACIES, **changes) -> list[Run]:
    """A run for each memory and seed, with a curve, slices and budgets."""
    return [
        Run(
            **{
                "name": f"memory={memory}_seed={seed}",
                "settings": {"memory": memory, "seed": seed},
                "seed": seed,
                "seconds": 60.0,
                "budget": {"params": 1000, "flops_per_token": 2000, "state_bytes": 64},
                "result": {"eval/accuracy": value} | {f"eval/accuracy/distance={d}": value / d for d in (1, 4, 16)},
                "curves": {"train/loss": [[step, value / step] for step in (10, 20, 30)]},
            }
            | changes
        )
        for memory, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def study(claims=None, planned=(), path=Path("experiments/delta/sweep.py"), **declared) -> Study:
    return Study(path, "Does it?", "Why.", "configs/lm.py", {}, report(declared), list(planned), claims)


def table(found: list[Run], **declared):
    return tabulate(study(**declared), found)
