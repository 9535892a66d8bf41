"""Sweeps: many runs from one file. The combinators are for sweep files; `run_sweep` does what `memtx sweep` does."""

from memtx.sweep.combine import chain, product, sample, zip_
from memtx.sweep.run import run_sweep

__all__ = ["chain", "product", "run_sweep", "sample", "zip_"]
