"""The display of a sweep on the standard error: a live table, or a line per change of a run's state if it is no terminal."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from memtx.progress import Pace
from memtx.sweep import record as records
from memtx.sweep.execute import folder_of

STYLES = {"finished": "green", "failed": "red", "running": "bold", "waiting": "dim"}
ENDS = ("finished", "failed")
ROWS = 20  # the largest number of rows for runs that are neither running nor failed


class Board:
    """A display of the state of each run. It is live within its context."""

    def __init__(self, console: Console, names: list[str], workdir: Path):
        self._console, self._workdir = console, workdir
        self._states = dict.fromkeys(names, "waiting")
        self._notes: dict[str, str] = {}
        self._began: dict[str, float] = {}
        self._pace: Pace | None = None
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc) -> None:
        if self._live:
            self._live.stop()

    def changed(self, name: str, state: str, note: str) -> None:
        """Record the new state of a run, and print it unless there is a live table. note: the description, or "".

        The time left is counted from the first run that starts, without the runs that had ended before.
        """
        if state == "running" and not self._pace:
            self._pace = Pace("run", self._ended())
        if (self._states[name], self._notes.get(name)) == (state, note):
            return
        self._states[name], self._notes[name] = state, note
        self._began.setdefault(name, time.monotonic())
        if not self._live:
            text = f"{state:8}  {name}  {note or self._describe(name)}"
            self._console.print(text.rstrip(), markup=False)
            if self._pace and state in ENDS:
                self._console.print(self.progress(), markup=False)

    def refresh(self) -> None:
        """Redraw the live table."""
        if self._live:
            self._live.update(self.table(), refresh=True)

    def summary(self) -> str:
        """Return the number of runs by state, such as "12 runs: 10 finished, 2 failed"."""
        counts = Counter(self._states.values())
        total = len(self._states)
        return f"{total} run{'s' * (total != 1)}: " + ", ".join(f"{counts[state]} {state}" for state in STYLES if counts[state])

    def progress(self) -> str:
        """Return the number of runs that have ended, their rate and the time left. It is "" before the first run starts."""
        return self._pace.text(self._ended(), len(self._states)) if self._pace else ""

    def _ended(self) -> int:
        return sum(state in ENDS for state in self._states.values())

    def table(self) -> Table:
        """Return the table of runs: all running and failed ones, and up to ROWS others."""
        title = "\n".join(filter(None, (self.summary(), self.progress())))
        table = Table(title=Text(title), min_width=60)  # a title, because a terminal cuts off the end of a long table
        table.add_column("run", overflow="fold")
        table.add_column("state")
        table.add_column("", overflow="ellipsis", no_wrap=True)
        busy = [name for name, state in self._states.items() if state in ("running", "failed")]
        others = [name for name in self._states if name not in busy]
        shown = {*busy, *others[:ROWS]}
        for name, state in self._states.items():
            if name in shown:
                note = self._notes.get(name) or self._describe(name)
                table.add_row(Text(name), state, Text(note), style=STYLES[state])
        if len(shown) < len(self._states):
            table.add_row(f"... and {len(self._states) - len(shown)} more", "", "")
        return table

    def _describe(self, name: str) -> str:
        """Return the step and loss of a running run, or the results of a finished one."""
        folder, state = folder_of(self._workdir, name), self._states[name]
        if state == "finished":
            record = records.read(folder) or {}
            values = {k: v for k, v in record.get("result", {}).items() if k.count("/") < 2 and isinstance(v, float)}
            main = [f"{key.removeprefix('eval/')} {value:.4g}" for key, value in list(values.items())[:2]]
            return ", ".join([*main, f"{record.get('seconds', 0):.0f} s"])
        if state == "running" and (lines := [line for line in records.metrics(folder) if "train/loss" in line]):
            loss = lines[-1]["train/loss"]
            return f"step {lines[-1]['step']}" + (f", loss {loss:.4g}" if loss is not None else "")
        return ""
