"""Reports say what the runs say: hand-worked means, missing runs counted, the same bytes for the same input."""

import csv
import dataclasses
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from memtx import cli, reports
from memtx.errors import UserError
from memtx.evaluation.perplexity import Evaluation, Perplexity
from memtx.reports.check import compare
from memtx.reports.draw import apart, inline_svg, png, svg
from memtx.reports.figures import pictures
from memtx.reports.formats import as_csv, grid, latex, markdown
from memtx.reports.runs import POINTS, Run, thin
from memtx.reports.study import Study, load_study, report
from memtx.reports.table import tabulate
from memtx.sweep.spec import load_sweep

ACCURACIES = {"gla": (0.1, 0.2, 0.6), "deltanet": (0.9, 0.8, 1.0)}  # means 0.3 and 0.9, sample deviations 0.2646 and 0.1


def runs(accuracies=ACCURACIES, **changes) -> list[Run]:
    """A run for each memory and seed, with a curve, slices and budgets."""
    return [
        Run(
            **{
                "name": f"memory={memory}_seed={seed}",
                "settings": {"memory": memory, "seed": seed},
                "seed": seed,
                "seconds": 60.0,
                "budget": {"params": 1000, "flops_per_token": 2000, "state_bytes": 64},
                "result": {"eval/accuracy": value} | {f"eval/accuracy/distance={d}": value / d for d in (1, 4, 16)},
                "curves": {"train/loss": [[step, value / step] for step in (10, 20, 30)]},
            }
            | changes
        )
        for memory, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def study(claims=None, planned=(), path=Path("experiments/delta/sweep.py"), **declared) -> Study:
    return Study(path, "Does it?", "Why.", "configs/lm.py", {}, report(declared), list(planned), claims)


def table(found: list[Run], **declared):
    return tabulate(study(**declared), found)


# --- table -----------------------------------------------------------------------------------------------------------------


def test_runs_that_differ_only_in_seed_are_one_cell_with_mean_and_sample_deviation():
    found = table(runs())
    assert found.keys == ("memory",)
    assert [row.labels for row in found.rows] == [("gla",), ("deltanet",)]
    assert found["gla", "accuracy"].mean == pytest.approx(0.3)
    assert found["gla", "accuracy"].std == pytest.approx(0.07**0.5)  # sqrt((0.04 + 0.01 + 0.09) / 2)
    assert found["gla", "accuracy"].text(3) == "0.300 ± 0.265 (3)"
    assert found["deltanet", "accuracy"].text(2) == "0.90 ± 0.10 (3)"


def test_one_seed_has_no_spread():
    assert table(runs({"gla": (0.5,)}))["accuracy"].text(2) == "0.50 (1)"


@pytest.mark.parametrize(("better", "best"), [("higher", "deltanet"), ("lower", "gla")])
def test_the_best_is_in_bold_whichever_way_is_better(better, best):
    found = table(runs(), columns={"score": {"metric": "eval/accuracy", "better": better}})
    assert [row.name for row in found.rows if row.cells["score"].best] == [best]


def test_a_loss_is_better_when_lower_and_what_prints_alike_shares_the_bold():
    found = table(runs({"a": (1.0,), "b": (1.0004,), "c": (2.0,)}, result={}), columns={"time": "seconds"})
    assert [row.cells["time"].best for row in found.rows] == [False, False, False]
    by_name = {"a": 1.0, "b": 1.0004, "c": 2.0}
    losses = [Run(name, settings={"memory": name}, result={"eval/loss": value}) for name, value in by_name.items()]
    assert [row.cells["loss"].best for row in table(losses, columns={"loss": "eval/loss"}).rows] == [True, True, False]


def test_columns_may_be_of_different_runs():
    wide = [Run(f"{r.name}w", settings={**r.settings, "width": 64}, seed=r.seed, result={"eval/accuracy": 0.5}) for r in runs()]
    columns = {
        "narrow": {"metric": "eval/accuracy", "where": {"width": None}},
        "wide": {"metric": "eval/accuracy", "where": {"width": 64}},
    }
    found = table(runs() + wide, columns=columns)
    assert found.keys == ("memory",)
    assert found["gla", "narrow"].mean == pytest.approx(0.3)
    assert found["gla", "wide"].mean == 0.5


def test_missing_and_failed_runs_are_shown_and_counted():
    planned = runs(status="missing")
    finished = [run for run in runs() if run.settings["memory"] == "gla" and run.seed]
    failed = [run for run in runs(status="failed") if run.settings["memory"] == "deltanet"]
    found = reports.conclude(study(planned=planned), finished + failed).table
    assert found.rows[0].cells["accuracy"].text(1) == "0.4 ± 0.3 (2 of 3)"
    assert found.rows[1].cells["accuracy"].text(1) == "failed"
    notes = grid(found).notes
    assert "1 run missing: memory=gla_seed=0." in notes
    assert any(note.startswith("3 runs failed: memory=deltanet_seed=0, memory") for note in notes)
    assert [row[0].text for row in grid(reports.conclude(study(planned=planned), finished).table).rows] == ["gla"]
    assert not any("runs" in note for note in grid(table(runs())).notes)


def test_a_run_that_is_not_of_the_sweep_file_is_left_out_and_said():
    found = reports.conclude(study(planned=runs({"gla": ACCURACIES["gla"]}, status="missing")), runs())
    assert [row.name for row in found.table.rows] == [""]  # one row: nothing varies but the seed
    assert "3 runs not of the sweep file, left out: memory=deltanet_seed=0, memory=" in " ".join(grid(found.table).notes)


def test_runs_of_one_cell_that_differ_in_more_than_their_seed_are_refused():
    other = [Run(f"{r.name}x", settings={**r.settings, "optim.lr": 1e-3}, seed=r.seed, result=r.result) for r in runs()]
    with pytest.raises(UserError, match="differ in optim.lr: name it in report"):
        table(runs() + other, rows="memory")
    assert len(table(runs() + other).rows) == 4


def test_an_unknown_metric_is_one_line_with_the_nearest():
    with pytest.raises(UserError, match="no run has the metric 'eval/acuracy'; the nearest: eval/accuracy") as error:
        table(runs(), columns={"a": {"metric": "eval/acuracy", "better": "higher"}})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"collumns": {}}, "did you mean columns"),
        ({"columns": {"a": {"metrik": "eval/loss"}}}, "did you mean metric"),
        ({"columns": ["eval/loss"]}, "is a mapping"),
        ({"columns": {"a": {"metric": "m", "better": "up"}}}, "better"),
        ({"varies": "parameters"}, "did you mean params"),
    ],
)
def test_a_wrong_declaration_is_one_line(declared, message):
    with pytest.raises(UserError, match=message):
        report(declared)


def test_budgets_that_differ_by_more_than_5_percent_are_marked_unless_they_are_what_varies():
    budgets = {"gla": 1000, "deltanet": 1060}
    uneven = [run for name, size in budgets.items() for run in runs({name: ACCURACIES[name]}, budget={"params": size})]
    found = table(uneven)
    assert found.unmatched == {"params": ["from 1,000 (gla) to 1,060 (deltanet)"]}
    assert "parameters†" in markdown(found)
    assert not table(uneven, varies="params").unmatched
    assert not table(runs()).unmatched
    even = [*runs({"gla": (1,)}, budget={"params": 1000}), *runs({"deltanet": (1,)}, budget={"params": 1050})]
    assert not table(even).unmatched


# --- formats ---------------------------------------------------------------------------------------------------------------


def test_latex_escapes_what_latex_would_read_as_commands():
    found = latex(table(runs({"a_b & 50%": (0.1,), "c#{d}~^\\": (0.2,)})))
    assert r"a\_b \& 50\% & 0.100 (1) & 1,000" in found
    assert r"c\#\{d\}\textasciitilde{}\textasciicircum{}\textbackslash{} & \textbf{0.200 (1)}" in found
    assert found.startswith("\\begin{tabular}{lrrrr}\n\\toprule\n")
    assert r"$\pm$" in latex(table(runs()))


def test_markdown_keeps_its_columns_whatever_the_names():
    found = markdown(table(runs({"a|b": (0.1,), "c": (0.2,)}))).splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in found[:4]] == [6] * 4


def test_csv_has_the_numbers_in_full():
    rows = list(csv.DictReader(io.StringIO(as_csv(table(runs())))))
    assert float(rows[0]["accuracy std"]) == pytest.approx(0.07**0.5, rel=1e-12)
    assert (rows[1]["memory"], rows[1]["accuracy seeds"]) == ("deltanet", "3")


# --- figures ---------------------------------------------------------------------------------------------------------------


def test_a_figure_has_a_line_for_each_row_with_seeds_as_spread():
    figures = {
        "loss": "train/loss",
        "far": {"y": "eval/accuracy", "x": "distance"},
        "cost": {"y": "eval/accuracy", "x": "params"},
    }
    loss, far, cost = pictures(study(figures=figures), runs())
    assert [line.label for line in loss.lines] == ["gla", "deltanet"]
    assert [point.x for point in loss.lines[0].points] == [10, 20, 30]
    assert loss.lines[0].points[1].mean == pytest.approx(0.3 / 20)
    assert [(point.x, pytest.approx(point.mean)) for point in far.lines[1].points] == [(1, 0.9), (4, 0.225), (16, 0.05625)]
    assert far.lines[1].points[0].std == pytest.approx(0.1)
    assert far.log == "x"
    assert cost.points
    assert [point.x for line in cost.lines for point in line.points] == [1000, 1000]


def test_an_override_may_be_the_axis():
    swept = [
        Run(f"{s}{w}", settings={"width": str(w), "seed": s}, seed=s, result={"eval/loss": w + s})
        for w in (2, 4)
        for s in (0, 1)
    ]
    (found,) = pictures(study(figures={"width": {"y": "eval/loss", "x": "width"}}), swept)
    assert [(p.x, p.mean) for p in found.lines[0].points] == [(2, 2.5), (4, 4.5)]


def test_slices_come_before_a_setting_of_the_same_name():
    named = [dataclasses.replace(run, settings={**run.settings, "distance": "4"}) for run in runs()]
    [far] = pictures(study(figures={"far": {"y": "eval/accuracy", "x": "distance"}}), named)
    assert [point.x for point in far.lines[0].points] == [1, 4, 16]


def test_a_figure_of_what_no_run_has_is_one_line_with_the_nearest():
    with pytest.raises(UserError, match="the nearest: eval/accuracy"):
        pictures(study(figures={"far": {"y": "eval/acuracy", "x": "distance"}}), runs())


def test_the_same_picture_has_the_same_bytes():
    figures = {"loss": "train/loss", "cost": {"y": "eval/accuracy", "x": "params"}}
    for picture in pictures(study(figures=figures), runs()):
        assert svg(picture) == svg(picture)
        assert png(picture) == png(picture)
        assert "<dc:date>" not in svg(picture)
        assert 'id="axes_1"' not in inline_svg(picture)


def test_labels_keep_apart_in_their_order():
    placed = apart([0.5, 0.1, 0.5, 0.52, 0.99], 0.1)
    assert placed[1] == pytest.approx(0.1)
    assert sorted(range(5), key=placed.__getitem__) == [1, 0, 2, 3, 4]
    ordered = sorted(placed)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert max(placed) <= 1 + 1e-9


def test_a_thinned_curve_keeps_its_ends():
    curve = [[step, step / 3] for step in range(1, 1001)]
    thinned = thin(curve)
    assert len(thinned) == POINTS
    assert (thinned[0], thinned[-1]) == ([1, 0.333333], [1000, 333.333])
    assert thin(thinned) == thinned


def test_the_loss_by_position_is_a_slice_that_begins_at_one():
    seen = Perplexity(2.0, 1.0, 2.7, 9, 9, [1.0], [2**0.125 - 1, 2**1.125 - 1, 2**8.125 - 1], [3.0, 2.0, 1.0])
    found = Evaluation(seen, seen).metrics()
    assert {name: found[name] for name in found if name.startswith("eval/loss/")} == {
        "eval/loss/position=1": 3.0,
        "eval/loss/position=2": 2.0,
        "eval/loss/position=279": 1.0,
    }


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
    monkeypatch.chdir(Path(__file__).parents[1])
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
    assert contents(work / "again") == contents(work / "report")


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
