"""Reports: tables, figures, verdicts and a page from the runs of a sweep. `memtx report` calls `conclude` and `write`."""

from memtx.reports.files import publish, write
from memtx.reports.findings import Findings, conclude
from memtx.reports.runs import from_results, from_workdir, store
from memtx.reports.study import load_study

__all__ = ["Findings", "conclude", "from_results", "from_workdir", "load_study", "publish", "store", "write"]
