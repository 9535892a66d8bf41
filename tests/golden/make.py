"""Goldens of memtx's own mechanisms, from oracles that share nothing with memtx (base.py; one module per family).

python -m tests.golden.make [NAME ...]       writes tests/golden/*.npz: all of them, or those whose names begin so
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from memtx.contract.golden import Golden
from tests.golden import cached, encoders, fast_weights, linear, recurrent, retrieval, tables, tokens, ttt

FOLDER = Path(__file__).parent
FAMILIES = (cached, recurrent, tokens, retrieval, linear, ttt, fast_weights, tables, encoders)
GOLDENS: dict[str, Golden] = {name: golden for family in FAMILIES for name, golden in family.GOLDENS.items()}


def main(given: list[str]) -> None:
    chosen = [name for name in GOLDENS if not given or name.startswith(tuple(given))]
    if absent := [prefix for prefix in given if not any(name.startswith(prefix) for name in GOLDENS)]:
        print(f"no golden is named {', '.join(absent)}; known: {', '.join(GOLDENS)}", file=sys.stderr)
        sys.exit(2)
    for name in chosen:
        np.savez_compressed(FOLDER / f"{name}.npz", **GOLDENS[name].make(name))
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
