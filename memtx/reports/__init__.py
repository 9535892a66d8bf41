"""Reports: tables, figures, verdicts and a page from the runs of a sweep, and the page of a single run.

`memtx report` calls `conclude` and `write`, or `from_run` and `write_single`.
"""

from memtx.reports.files import publish, write, write_single
from memtx.reports.findings import Findings, conclude
from memtx.reports.runs import from_results, from_workdir, store
from memtx.reports.single import from_run
from memtx.reports.study import load_study

__all__ = [
    "Findings",
    "conclude",
    "from_results",
    "from_run",
    "from_workdir",
    "load_study",
    "publish",
    "store",
    "write",
    "write_single",
]
