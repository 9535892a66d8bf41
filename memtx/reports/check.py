"""Does a rerun's table agree with the stored one?"""

from __future__ import annotations

from dataclasses import dataclass

from memtx.reports.table import Table

STDS = 2  # a mean of the rerun may be so many stored standard deviations away


@dataclass(frozen=True)
class Comparison:
    """Of one cell. again: the rerun's mean, None if it has no finished run there; allowed: how far it may be off."""

    row: str
    column: str
    stored: float
    again: float | None
    allowed: float

    @property
    def agrees(self) -> bool:
        return self.again is not None and abs(self.again - self.stored) <= self.allowed

    @property
    def verdict(self) -> str:
        return "not rerun" if self.again is None else "agrees" if self.agrees else "differs"


def compare(stored: Table, again: Table, floor: float) -> list[Comparison]:
    """Every measured cell of the stored table but speeds, which are a machine's.

    floor: the least that is allowed, also where one seed has no spread.
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
