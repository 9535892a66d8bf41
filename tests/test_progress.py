"""The display of progress, on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

import memtx.progress
from memtx import cli
from memtx.progress import Pace, Progress, clock
from tests.runs import write_texts


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The time. It changes only when a test changes it."""
    time = [100.0]
    monkeypatch.setattr(memtx.progress.time, "monotonic", lambda: time[0])
    return time


def console(terminal=False) -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)


def test_a_line_has_the_parts_the_speed_and_the_time_left(now):
    pace = Pace("document", done=10)
    assert pace.text(10, 120) == "document 10/120"
    now[0] += 10
    assert pace.text(30, 120) == "document 30/120  2.0 documents/s  0:45 left"
    assert pace.text(30, 0) == "document 30  2.0 documents/s"
    assert pace.text(30, 120, "loss 1.5", "50 tokens/s") == "document 30/120  loss 1.5  50 tokens/s  0:45 left"
    now[0] += 3590
    assert pace.text(12, 120) == "document 12/120  2.0 documents/h  54:00:00 left"
    assert clock(62) == "1:02"


@pytest.mark.parametrize("total", [100, 1000])
def test_no_terminal_gets_a_few_lines(now, total):
    out = console()
    with Progress("text", console=out) as progress:
        for done in range(1, total + 1):
            now[0] += 1
            progress(done, total)
    lines = out.file.getvalue().splitlines()
    assert lines[0].startswith("text 10/")  # after ten seconds
    assert lines[-1].startswith(f"text {total}/{total}  1.0 texts/s  0:00 left")
    assert 9 <= len(lines) <= 12


def test_quick_work_gets_no_line_and_slow_work_one_in_ten_minutes(now):
    out = console()
    with Progress("text", console=out) as progress:
        for done in range(11):
            now[0] += 0.5
            progress(done, 10)
    assert out.file.getvalue() == ""
    with Progress("run", console=out) as progress:
        for done in range(1, 100):
            now[0] += 400
            progress(done, 100_000)
    assert len(out.file.getvalue().splitlines()) == 50


def test_a_terminal_gets_a_bar_that_is_removed(now):
    out = console(terminal=True)
    with Progress("text", console=out) as progress:
        for done in range(3):
            progress(done, 2)
            now[0] += 1
    shown = out.file.getvalue()
    assert "━" in shown
    assert "text 1/2  1.0 texts/s  0:01 left" in shown
    assert "text 2/2  1.0 texts/s  0:00 left" in shown
    assert shown.rstrip("\x1b[?25h").endswith("\x1b[2K")  # the line is erased


def test_a_command_writes_it_to_the_standard_error_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Progress.__init__, "__kwdefaults__", Progress.__init__.__kwdefaults__ | {"patience": 0.0})
    command = ["data", f"--corpus=textdir:{write_texts(tmp_path / 'texts')}", f"--cache={tmp_path / 'cache'}"]
    cli.main(command)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert all(line.startswith("document ") for line in lines)
    for work in ("24/24  reading textdir:", "22/22  writing train  ", "22/22  tokens of train  "):
        assert f"document {work}" in err
    assert "document 1/22" not in out
    cli.main(command)  # the tokens are in the cache
    assert capsys.readouterr() == (out, "")
