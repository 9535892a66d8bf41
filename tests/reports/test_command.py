"""Claims, reruns, and the files that `memtx report` writes: the same each time, and no other file needed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memtx import cli, reports
from memtx.reports.check import compare
from memtx.reports.runs import Run
from memtx.reports.study import load_study
from memtx.sweep.spec import load_sweep
from tests.reports.made import runs, study, table

# --- claims and reruns -----------------------------------------------------------------------------------------------------


def claims(found):
    yield "deltanet beats gla by 0.5", found["deltanet", "accuracy"].mean > found["gla", "accuracy"].mean + 0.5
    yield "gla beats deltanet", found["gla", "accuracy"].mean > found["deltanet", "accuracy"].mean
    yield "full beats both", found["full", "accuracy"].mean > 0.9


def test_claims_are_judged_and_one_about_what_was_not_run_stays_open():
    full = Run("full", "failed", settings={"memory": "full"})
    found = reports.conclude(study(claims), [*runs(), full])
    assert found.judged == [("deltanet beats gla by 0.5", True), ("gla beats deltanet", False)]
    assert "no finished run of full for accuracy" in found.undecided
    wrong = reports.conclude(study(lambda t: [("a", t["delta", "accuracy"].mean > 0)]), runs())
    assert "the nearest: deltanet, accuracy" in wrong.undecided


def test_a_rerun_agrees_within_two_stored_deviations_or_the_floor():
    stored = table(runs())  # 0.3 ± 0.2646 and 0.9 ± 0.1
    near = table(runs({"gla": (0.8,), "deltanet": (0.71,)}))
    assert [cell.verdict for cell in compare(stored, near, 0.0)] == ["agrees", "agrees"]
    far = table(runs({"gla": (0.83,), "deltanet": (0.69,)}))
    assert [cell.verdict for cell in compare(stored, far, 0.0)] == ["differs", "differs"]
    assert [cell.verdict for cell in compare(stored, far, 0.6)] == ["agrees", "agrees"]
    one = table(runs({"gla": (0.5,), "deltanet": (0.5,)}))
    assert [cell.verdict for cell in compare(one, one, 0.0)] == ["agrees", "agrees"]
    part = compare(stored, table(runs({"gla": (0.3,)}), rows="memory"), 0.0)
    assert [cell.verdict for cell in part] == ["agrees", "not rerun"]
    speeds = table(runs(result={"stream/tokens_per_s": 9.0}), columns={"speed": "stream/tokens_per_s"})
    assert [len(row.cells) for row in speeds.rows] == [1, 1]
    assert compare(speeds, speeds, 0.0) == []  # of a machine, not of a result


# --- files and the command ---------------------------------------------------------------------------------------------------

SWEEP = '''"""Does it?

Why <b>it</b> would.
"""

config = "configs/lm.py:size=micro"


def sweep():
    for memory in ("window", "xl"):
        for seed in (0, 1):
            yield {"config": f"configs/lm.py:size=micro,memory={memory}", "seed": seed}


report = {
    "columns": {"bits & bytes": "eval/bits_per_byte"},
    "figures": {"loss": "train/loss", "far": {"y": "eval/loss", "x": "position"}},
}


def claims(table):
    yield "xl <beats> window", table["xl", "bits & bytes"].mean < table["window", "bits & bytes"].mean
'''
BITS = {"window": (2.0, 2.2), "xl": (1.5, 1.7)}


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """A study's folder, and a workdir in which all its runs have finished."""
    monkeypatch.chdir(Path(__file__).parents[2])
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "sweep.py").write_text(SWEEP)
    for run in load_sweep(folder / "sweep.py").runs.values():
        bits = BITS[run.settings["memory"]][run.config.seed]
        write_run(tmp_path / "work" / "runs" / run.name, run, bits)
    return folder


def write_run(folder: Path, run, bits: float, status: str = "finished") -> None:
    """As `memtx sweep` leaves it."""
    folder.mkdir(parents=True)
    result = {"eval/bits_per_byte": bits} | {f"eval/loss/position={n}": bits / n for n in (1, 10, 100)}
    lines = [{"step": step, "train/loss": bits + 1 / step, "train/lr": None} for step in range(1, 251)] + [
        {"step": 250, **result}
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {
        "name": run.name,
        "status": status,
        "overrides": run.overrides,
        "settings": run.settings,
        "seed": run.config.seed,
        "budget": {"params": 1000, "flops_per_token": 2000, "state_bytes": 64},
        "result": result,
        "seconds": 61.0,
        "code": {"version": "0.1.0", "commit": "0123456789", "dirty": False},
        "versions": {"jax": "0.10"},
        "machine": {"cpu": "abacus", "cores": 2},
    }
    (folder / "run.json").write_text(json.dumps(record))


def report_on(folder: Path, *argv: str) -> None:
    cli.main(["report", f"--sweep={folder / 'sweep.py'}", *argv])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_command_writes_tables_figures_and_a_page_the_same_each_time(swept, capsys):
    work = swept.parent / "work"
    report_on(swept, f"--workdir={work}")
    assert "1.600 ± 0.141 (2)" in capsys.readouterr().out
    first = contents(work / "report")
    assert set(first) == {"index.html", "table.md", "table.tex", "table.csv", "loss.png", "loss.svg", "far.png", "far.svg"}
    report_on(swept, f"--workdir={work}", f"--out={work / 'again'}")
    assert contents(work / "again") == first
    assert r"\textbf{1.600 $\pm$ 0.141 (2)}" in first["table.tex"].decode()


@pytest.mark.thorough
def test_another_process_writes_the_same_bytes(swept):
    work = swept.parent / "work"
    report_on(swept, f"--workdir={work}")
    command = [sys.executable, "-m", "memtx.cli", "report", f"--sweep={swept / 'sweep.py'}", f"--workdir={work}"]
    subprocess.run(
        [*command, f"--out={work / 'again'}"], check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": "7"}
    )
    assert contents(work / "again") == contents(work / "report")


def test_the_page_needs_no_other_file_and_escapes_what_it_shows(swept):
    report_on(swept, f"--workdir={swept.parent / 'work'}")
    page = (swept.parent / "work" / "report" / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "Why &lt;b&gt;it&lt;/b&gt; would." in page
    assert "xl &lt;beats&gt; window" in page
    assert "<b>1.600 ± 0.141 (2)</b>" in page
    assert page.count("<svg") == 2
    assert "abacus, 2 cores" in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_stored_runs_give_the_same_report_and_the_readme_up_to_its_mark(swept):
    results, readme, work = swept / "results", swept / "README.md", swept.parent / "work"
    readme.write_text("# Old\n\noutdated\n<!-- end -->\n\nThe verdict, by hand.\n")
    report_on(swept, f"--workdir={work}", f"--store={results}")
    text = readme.read_text()
    asked = load_study(swept / "sweep.py")
    assert text.startswith(f"# {asked.title}\n\n{asked.question}\n\n| memory | bits & bytes |")
    assert text.endswith("<!-- end -->\n\nThe verdict, by hand.\n")
    assert "outdated" not in text
    assert "- **holds**: xl \\<beats> window" in text
    assert "![loss](results/loss.png)" in text
    assert all(path.stat().st_size < 10_000 for path in results.glob("*.json"))
    before = contents(swept) | contents(results)
    report_on(swept, f"--results={results}", f"--out={work / 'again'}")
    assert contents(swept) | contents(results) == before
    again = contents(work / "again")  # its page names the usual workdir of the study
    again["index.html"] = again["index.html"].replace(f"--workdir=runs/{swept.name}".encode(), f"--workdir={work}".encode())
    assert again == contents(work / "report")


def test_a_rerun_is_checked_against_what_is_stored(swept, capsys):
    work, results = swept.parent / "work", swept / "results"
    report_on(swept, f"--workdir={work}", f"--store={results}")
    report_on(swept, f"--workdir={work}", f"--check={results}")
    assert "2 of 2 cells agree" in capsys.readouterr().out
    for run in list(load_sweep(swept / "sweep.py").runs.values())[:2]:
        write_run(swept.parent / "other" / "runs" / run.name, run, 9.0)
    with pytest.raises(SystemExit) as stop:
        report_on(swept, f"--workdir={swept.parent / 'other'}", f"--check={results}")
    assert stop.value.code == 1
    shown = capsys.readouterr().out
    assert "0 of 2 cells agree" in shown
    assert "differs" in shown
    assert "not rerun" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--sweep is missing"),
        (["--sweep=S"], "--workdir is missing"),
        (["--sweep=none.py", "--workdir=W"], "no sweep file"),
        (["--sweep=S", "--workdir=empty"], "no runs in empty"),
        (["--sweep=S", "--results=W"], "no runs in"),
    ],
)
def test_mistakes_are_one_line(argv, message, swept, capsys):
    places = {"S": swept / "sweep.py", "W": swept.parent / "work"}
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", *(re.sub("=([SW])$", lambda m: f"={places[m[1]]}", arg) for arg in argv)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_readme_without_its_mark_and_a_damaged_run_are_named(swept, capsys):
    work = swept.parent / "work"
    (swept / "README.md").write_text("# Mine\n")
    with pytest.raises(SystemExit):
        report_on(swept, f"--workdir={work}", f"--store={swept / 'results'}")
    assert "needs the line <!-- end -->" in capsys.readouterr().err
    assert (swept / "README.md").read_text() == "# Mine\n"
    path = next(work.glob("runs/*/run.json"))
    path.write_text('{"name": ')
    with pytest.raises(SystemExit):
        report_on(swept, f"--workdir={work}")
    assert f"{path} is damaged" in capsys.readouterr().err
