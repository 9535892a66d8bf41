"""Figures: a line for each row, seeds as spread, the same bytes for the same input."""

import dataclasses
import itertools

import pytest

from memtx.errors import UserError
from memtx.evaluation.perplexity import Evaluation, Perplexity
from memtx.reports.draw import apart, inline_svg, png, svg
from memtx.reports.figures import pictures
from memtx.reports.runs import POINTS, Run, thin
from tests.reports.made import runs, study


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
