"""Sweeps: many runs from one file. Sweep files use the combinators. `run_sweep` does the same as `memtx sweep`."""

from memtx.sweep.combine import chain, product, sample, zip_
from memtx.sweep.run import run_sweep

__all__ = ["chain", "product", "run_sweep", "sample", "zip_"]
