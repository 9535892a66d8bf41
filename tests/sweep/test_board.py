"""What a sweep shows, on a terminal and in a file."""

import io

import pytest
from rich.console import Console

from memtx.sweep import record as records
from memtx.sweep.board import Board
from memtx.sweep.execute import folder_of


@pytest.fixture
def workdir(tmp_path):
    for name, record in {
        "one": {"status": "finished", "seconds": 12.0, "result": {"eval/accuracy": 0.98765, "eval/accuracy/pairs=1": 1.0}},
        "two": {"status": "running"},
    }.items():
        folder_of(tmp_path, name).mkdir(parents=True)
        records.write(folder_of(tmp_path, name), record)
    (folder_of(tmp_path, "two") / "metrics.jsonl").write_text('{"step": 30, "train/loss": 2.5}\n{"step": 40, "train/l')
    return tmp_path


def show(workdir, names, terminal: bool) -> str:
    out = io.StringIO()
    board = Board(Console(file=out, force_terminal=terminal, width=80, color_system=None), names, workdir)
    with board:
        board.changed("one", "finished", "")
        board.changed("two", "running", "")
        board.changed("three", "failed", "[red] is no markup")
        board.refresh()
    return out.getvalue()


def test_a_file_gets_a_line_for_each_change_and_the_time_left(workdir):
    lines = show(workdir, ["one", "two", "three", "four"], terminal=False).splitlines()
    assert lines[3].startswith("run 2/4  ")
    assert lines[:3] == [
        "finished  one  accuracy 0.9877, 12 s",
        "running   two  step 30, loss 2.5",
        "failed    three  [red] is no markup",
    ]


def test_a_terminal_gets_a_table_with_the_state_of_all_and_the_time_left(workdir):
    shown = show(workdir, ["one", "two", "three", "four"], terminal=True)
    for text in ("accuracy 0.9877, 12 s", "step 30, loss 2.5", "[red] is no markup", "four"):
        assert text in shown
    assert "4 runs: 1 finished, 1 failed, 1 running, 1 waiting" in shown
    assert "run 2/4  " in shown


def test_a_long_sweep_shows_what_runs_and_what_failed_and_counts_the_rest(workdir):
    shown = show(workdir, [*(f"more{i}" for i in range(500)), "one", "two", "three"], terminal=True)
    assert "step 30, loss 2.5" in shown
    assert "[red] is no markup" in shown
    assert "more400" not in shown
    assert "503 runs" in shown
