"""Comparison of a rerun's table with the stored one."""

from __future__ import annotations

from dataclasses import dataclass

from memtx.reports.table import Table

STDS = 2  # the mean of a rerun agrees within this many stored standard deviations


@dataclass(frozen=True)
class Comparison:
    """The comparison of one cell.

    stored   the stored mean
    again    the mean of the rerun, or None if no run of the cell has finished
    allowed  the largest difference at which they agree
    """

    row: str
    column: str
    stored: float
    again: float | None
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether the rerun's mean is close enough to the stored one."""
        return self.again is not None and abs(self.again - self.stored) <= self.allowed

    @property
    def verdict(self) -> str:
        """The result in words: "agrees", "differs" or "not rerun"."""
        return "not rerun" if self.again is None else "agrees" if self.agrees else "differs"


def compare(stored: Table, again: Table, floor: float) -> list[Comparison]:
    """Compare all measured cells of the stored table except speeds, which depend on the machine.

    floor: the least allowed difference. It is the only one for cells of one seed, which have no standard deviation.
    """
    reruns = {row.labels: row for row in again.rows}
    found = []
    for row in stored.rows:
        for heading, cell in row.cells.items():
            if not cell.by_seed or stored.columns[heading].metric.endswith("tokens_per_s"):
                continue
            other = reruns[row.labels].cells[heading] if row.labels in reruns else None
            mean = other.mean if other and other.by_seed else None
            found.append(Comparison(row.name, heading, cell.mean, mean, max(STDS * (cell.std or 0.0), floor)))
    return found
