"""The page of a single run, in every state that a run can be in."""

import json
import re
import shutil
from pathlib import Path

import pytest

from memtx import cli
from memtx.config import Config, to_json
from memtx.training.workdir import SAMPLE

EVALUATION = {f"eval/bits_per_byte{end}": 2.0 + bool(end) for end in ("", "_wiped")}
EVALUATION |= {f"eval/loss{end}/position={n}": 3.0 / n for end in ("", "_wiped") for n in (1, 10, 100, 1000)}
EVALUATION |= {"eval/accuracy/updated=yes": 0.25, "eval/accuracy_wiped/updated=yes": 0.125, "eval/f1": 7.5}
HEALTH = {"memory/age": 12.0, "memory/age/layer=0": 9.0, "memory/gate": 0.5, "memory/gate_min": 0.125, "memory/gate_max": 0.75}


def write_run(folder: Path, *lines: dict) -> Path:
    """A run of 30 steps with these lines of metrics."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_json(Config()) | {"train": to_json(Config())["train"] | {"steps": 30}}))
    if lines:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def training(*steps: int) -> list[dict]:
    return [{"step": step, "train/loss": 1 / step, "train/lr": 0.1, "train/tokens_per_s": 50.0} for step in steps]


def page_of(run: Path) -> str:
    cli.main(["report", f"--workdir={run}"])
    return (run / "report" / "index.html").read_text()


def titles(page: str) -> list[str]:
    return re.findall("<figcaption>(.*?)</figcaption>", page)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    evaluations = [{"step": step} | EVALUATION | HEALTH for step in (20, 30)]
    run = write_run(tmp_path_factory.mktemp("runs") / "a<b", *training(10, 20, 30), *evaluations)
    (run / SAMPLE).write_text("To <be>,\nor not")
    return run


def test_a_page_has_every_part_of_a_run(whole, capsys):
    page = page_of(whole)
    assert capsys.readouterr().out == f"page    {whole / 'report' / 'index.html'}\n"
    assert "<h1>a&lt;b</h1>" in page
    assert "Finished: 30 of 30 steps." in page
    assert titles(page) == ["Training loss", "Evaluations", "Learning rate", "Loss by position"]
    cells = re.findall(r"<tr>(<td.*?)</tr>", page)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in cells]
    assert ["bits per byte", "2.0000", "3.0000", "+1.0000"] in rows
    assert ["accuracy/updated=yes", "0.2500", "0.1250", "+0.1250"] in rows
    assert ["f1", "7.5000", "", ""] in rows
    assert ["age", "12", "9"] in rows
    assert ["gate", "0.50", "0.12", "0.75"] in rows
    assert "To &lt;be&gt;,\nor not" in page
    assert "<dt>speed</dt><dd>50 tokens per second</dd>" in page
    assert re.findall("<dt>train.*</dd>", page) == ["<dt>train.steps</dt><dd>30</dd>"]  # the only key that differs
    assert "train.batch: 8\n" in page


def test_a_page_needs_no_other_file_and_is_the_same_each_time(whole):
    page = page_of(whole)
    assert page_of(whole) == page
    assert not re.search(r'(src|href)="(?!#)', page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("lines", "progress", "figures"),
    [
        ([], "Not finished: 0 of 30 steps.", []),
        (training(10), "Not finished: 10 of 30 steps.", []),
        (training(30), "Not finished: 30 of 30 steps.", []),  # killed in the last evaluation
        (training(10, 20), "Not finished: 20 of 30 steps.", ["Training loss", "Learning rate"]),
        ([{"step": 10, "train/loss": None}], "Not finished: 10 of 30 steps.", []),
    ],
)
def test_a_run_without_evaluations_sample_and_health_has_a_page(tmp_path, lines, progress, figures):
    page = page_of(write_run(tmp_path / "run", *lines))
    assert progress in page
    assert "The run has not been evaluated yet." in page
    assert titles(page) == figures
    assert not re.search("<h2>(Sample|Health|Runs|Verdict)", page)


def test_the_curve_of_a_task_is_its_accuracy_by_slice(tmp_path):
    lines = [
        {"step": s, "eval/loss": 1.0, "eval/accuracy": 0.5, "eval/accuracy/pairs=2": 0.5, "eval/accuracy/pairs=4": 0.25}
        for s in (1, 2)
    ]
    page = page_of(write_run(tmp_path / "run", *lines))
    assert titles(page) == ["Evaluations", "Accuracy by pairs"]
    assert ">accuracy</text>" in page


def test_a_run_of_a_sweep_has_the_facts_of_its_record(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    record = {"name": "memory=xl", "status": "failed", "error": "no room", "seconds": 61.0, "machine": {"cpu": "abacus"}}
    (run / "run.json").write_text(json.dumps(record))
    page = page_of(run)
    assert "<h1>memory=xl</h1>" in page
    assert "Not finished: 30 of 30 steps. It failed: no room" in page
    assert "<dt>time</dt><dd>61 s</dd>" in page
    assert "abacus" in page


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--workdir=W"], "is not the workdir of a run (it has no config.json)"),
        (["--workdir=gs://bucket/run"], "gs://bucket/run is the address of a bucket"),
        (["--workdir=W/model"], "model/config.json is not the config of a run"),
        (["--workdir=W", "--format=csv"], "--sweep is missing"),
        (["--workdir=W", "--store=x"], "--sweep is missing"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, argv, message):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", *(arg.replace("=W", f"={tmp_path}") for arg in argv)])
    assert stop.value.code == 2
    assert message in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
