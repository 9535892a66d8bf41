"""The pytest plugin of the contract: its options, and a summary of the checks that ran.

It loads with every pytest session, so it imports neither JAX nor the rest of memtx.
"""

import re
from collections import Counter

import pytest


def pytest_addoption(parser):
    """Add the options --memory, --golden and --devices."""
    group = parser.getgroup("memtx", "the contract of memtx (--pyargs memtx.contract)")
    group.addoption("--memory", default="", help="the mechanism to test, path/to/file.py:ClassName; default: all of memtx")
    group.addoption(
        "--golden", default="", help="the expected outputs for C1: a .npz file, a folder of them, or path/to/file.py:NAME"
    )
    group.addoption("--devices", type=int, default=1, choices=(1, 2, 4, 8), help="host devices that share each batch")


def pytest_configure(config):
    """Register the marker `thorough`."""
    config.addinivalue_line("markers", "thorough: a check that takes long to compile")
    config.stash[DESELECTED] = []


DESELECTED = pytest.StashKey[list]()


def pytest_deselected(items):
    """Remember the deselected tests for the summary."""
    if items:
        items[0].config.stash[DESELECTED].extend(item.nodeid for item in items)


def pytest_terminal_summary(terminalreporter, config):
    """Write one line per check: how many tests passed, and why others did not run."""
    if not config.getoption("memory"):
        return
    rows: dict[str, Counter] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            reason = f"skipped: {report.longrepr[2].removeprefix('Skipped: ')}" if outcome == "skipped" else outcome
            rows.setdefault(_check(report.nodeid), Counter())[reason] += 1
    for nodeid in config.stash[DESELECTED]:
        rows.setdefault(_check(nodeid), Counter())["deselected by -m or -k"] += 1
    if not config.getoption("golden"):
        rows["C1"] = Counter({"not run: pass the expected outputs by --golden": 1})
    terminalreporter.section("the contract")
    for check in sorted(rows, key=lambda name: int(name[1:]) if name[1:].isdigit() else 99):
        terminalreporter.write_line(f"{check:16}" + "; ".join(f"{count} {reason}" for reason, count in rows[check].items()))


def _check(nodeid: str) -> str:
    """Return the check that a test belongs to: "C7", or "language model"."""
    match = re.search(r"::test_c(\d+)_", nodeid)
    return f"C{match[1]}" if match else "language model" if "language_model" in nodeid else "others"
