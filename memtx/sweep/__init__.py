"""Sweeps: many runs from one file. The combinators are for sweep files: `from memtx.sweep import product`."""

from memtx.sweep.combine import chain, product, sample, zip_

__all__ = ["chain", "product", "sample", "zip_"]
