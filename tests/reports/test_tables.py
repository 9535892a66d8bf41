"""Tables agree with the runs: means computed by hand, missing runs counted, nothing lost in any format."""

import csv
import io
import re

import pytest

from memtx import reports
from memtx.errors import UserError
from memtx.reports.formats import as_csv, grid, latex, markdown
from memtx.reports.runs import Run
from memtx.reports.study import report
from memtx.reports.table import LONGEST
from tests.reports.made import ACCURACIES, runs, study, table


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


@pytest.mark.parametrize("score", ["exact_match", "f1", "bleu", "chrf", "rouge_l"])
def test_what_scores_written_texts_is_better_when_higher(score):
    made = [Run(name, settings={"memory": name}, result={f"eval/{score}": value}) for name, value in (("a", 1.0), ("b", 2.0))]
    assert [row.cells["score"].best for row in table(made, columns={"score": f"eval/{score}"}).rows] == [False, True]


def test_a_loss_is_better_when_lower_and_what_prints_alike_shares_the_bold():
    found = table(runs({"a": (1.0,), "b": (1.0004,), "c": (2.0,)}, result={}), columns={"time": "seconds"})
    assert [row.cells["time"].best for row in found.rows] == [False, False, False]
    by_name = {"a": 1.0, "b": 1.0004, "c": 2.0}
    losses = [Run(name, settings={"memory": name}, result={"eval/loss": value}) for name, value in by_name.items()]
    assert [row.cells["loss"].best for row in table(losses, columns={"loss": "eval/loss"}).rows] == [True, True, False]


def test_long_settings_are_cut_and_still_told_apart():
    stages = [[[1000, {"pairs": pairs, "alphabet": 16}] for pairs in (1, last)] for last in (2, 3)]
    made = [Run(str(i), settings={"data.curriculum": at}, result={"eval/accuracy": i}) for i, at in enumerate(stages)]
    heading = "accuracy, under a heading of its own length"  # which is not cut
    found = table(made, rows="data.curriculum", columns={heading: "eval/accuracy"})
    names = [row.name for row in found.rows]
    assert len(set(names)) == 2
    assert max(map(len, names)) <= LONGEST
    assert all(found[at, heading].mean == i for i, at in enumerate(stages))


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
    assert "3 runs not in the sweep file, left out: memory=deltanet_seed=0, memory=" in " ".join(grid(found.table).notes)


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
        ({"columns": ["eval/loss"]}, "must map headings"),
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
