"""Sinks that a config asks for: metrics.csv and Weights & Biases."""

import csv
import dataclasses
import io
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

import memtx
from memtx.config import Config, Train, to_json
from memtx.errors import UserError
from memtx.training.metrics import Metrics
from memtx.training.sinks import check_sinks
from memtx.training.workdir import claim
from tests import runs

CSV, WANDB = (Config(train=Train(steps=10, **{name: value})) for name, value in (("csv", True), ("wandb", "memories")))


def run(workdir, steps, config=CSV, **options) -> None:
    """An evaluation follows each second step."""
    with Metrics(workdir, config, console=Console(file=io.StringIO()), **options) as metrics:
        for step in steps:
            metrics.write(step, {"train/loss": 1 / step, "train/lr": float("nan")})
            if step % 2 == 0:
                metrics.write(step, {"eval/accuracy/a=1,b=2": step})


def rows(workdir) -> list[list[str]]:
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_a_row_is_a_step_a_metric_and_a_value(tmp_path):
    run(tmp_path, [2])
    assert (tmp_path / "metrics.csv").read_text() == (
        'step,metric,value\n2,train/loss,0.5\n2,train/lr,\n2,"eval/accuracy/a=1,b=2",2\n'
    )


def test_a_resumed_run_repeats_no_rows_of_csv(tmp_path):
    run(tmp_path / "whole", range(1, 11))
    run(tmp_path / "cut", range(1, 8))
    with (tmp_path / "cut" / "metrics.csv").open("a") as file:
        file.write("7,train/lo")  # killed here
    run(tmp_path / "cut", range(5, 11), resumed=4)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_csv_may_be_switched_on_later(tmp_path):
    run(tmp_path / "whole", range(1, 11))
    run(tmp_path / "later", range(1, 6), config=Config(train=Train(steps=10)))
    assert not (tmp_path / "later" / "metrics.csv").exists()
    run(tmp_path / "later", range(6, 11), resumed=5)
    assert rows(tmp_path / "later") == rows(tmp_path / "whole")
    claim(tmp_path / "w", to_json(Config())).release()
    claim(tmp_path / "w", to_json(dataclasses.replace(CSV, train=Train(csv=True, wandb="x")))).release()  # as on resuming


class Service(ModuleType):
    """A stand-in for wandb: it has the rows that it was sent, by the id of the run."""

    def __init__(self, mode="offline", logged_in=False):
        super().__init__("wandb")
        self.sent: dict[str, list[dict]] = {}
        self.given: list[dict] = []
        self.finished = 0
        self.errors = SimpleNamespace(Error=ValueError)
        self.Settings = dict
        self.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode))
        self.login = lambda prompt, verify: logged_in and not prompt

    def init(self, **given):
        self.given.append(given)
        if given["project"] == "wrong":
            raise ValueError("no\nsuch project")
        log = self.sent.setdefault(given["id"], []).append
        return SimpleNamespace(log=log, finish=self._finish, define_metric=lambda *_, **__: None)

    def _finish(self):
        self.finished += 1


@pytest.fixture
def service(monkeypatch) -> Service:
    monkeypatch.setitem(sys.modules, "wandb", found := Service())
    return found


def test_a_resumed_run_continues_its_run_of_wandb_without_repeated_rows(tmp_path, service):
    run(tmp_path / "whole", range(1, 11), WANDB)
    run(tmp_path / "cut", range(1, 8), WANDB)
    run(tmp_path / "cut", range(5, 11), WANDB, resumed=4)
    whole, cut = service.sent.values()
    assert cut == whole
    assert [row["step"] for row in cut if "train/loss" in row] == [*range(1, 11)]
    assert cut[1] == {"step": 2, "train/loss": 0.5}  # numbers that are not finite have no value there
    assert cut[2] == {"step": 2, "eval/accuracy/a=1,b=2": 2}
    assert service.finished == 3
    assert {given["resume"] for given in service.given} == {"allow"}
    assert service.given[0]["config"]["train"]["steps"] == 10


def test_an_evaluation_that_a_kill_interrupted_is_sent(tmp_path, service):
    with Metrics(tmp_path, WANDB, console=Console(file=io.StringIO())) as metrics:
        metrics.write(2, {"train/loss": 1.0})
    run(tmp_path, [1, 2], WANDB)
    (sent,) = service.sent.values()
    assert [(row["step"], len(row)) for row in sent] == [(2, 2), (2, 2)]


def test_only_process_0_writes(tmp_path, service, monkeypatch):
    monkeypatch.setattr("memtx.training.processes.is_first", lambda: False)
    run(tmp_path / "run", [1, 2], dataclasses.replace(WANDB, train=Train(csv=True, wandb="x")))
    assert not service.given
    assert not (tmp_path / "run").exists()


def test_wandb_never_asks_for_a_login(monkeypatch):
    for mode, logged_in, allowed in (("offline", False, True), ("online", True, True), ("online", False, False)):
        monkeypatch.setitem(sys.modules, "wandb", Service(mode, logged_in))
        if allowed:
            check_sinks(WANDB)
            continue
        with pytest.raises(UserError, match="run wandb login, or set WANDB_MODE=offline"):
            check_sinks(WANDB)


def test_errors_of_wandb_are_one_line(tmp_path, service):
    with pytest.raises(UserError, match="cannot start a run: no such project"):
        run(tmp_path, [1], Config(train=Train(wandb="wrong")))


def test_without_the_package_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed; run pip install '\.\[wandb\]'"):
        memtx.train(runs.tiny(tmp_path, train={"wandb": "x"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_sinks(CSV)


def test_the_package_itself_writes_and_continues_a_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    check_sinks(WANDB)
    run(tmp_path, range(1, 4), WANDB)
    run(tmp_path, range(3, 5), WANDB, resumed=2)
    wandb.teardown()
    first, second = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert first.name == second.name
    assert [steps_of(path) for path in (first, second)] == [[1, 2, 2, 3], [4, 4]]


def steps_of(path) -> list[int]:
    """The steps of the rows in a file of wandb, which has the blocks of a LevelDB log after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record, found = path.read_bytes(), 7, b"", []
    while at < len(data):
        if (left := 2**15 - at % 2**15) < 7:  # padding at the end of a block
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            items = Record.FromString(record).history.item
            found += [int(item.value_json) for item in items if "step" in (item.key, *item.nested_key)]
            record = b""
    return found


@pytest.mark.thorough
def test_training_resumes_both(tmp_path, service):
    for steps in (3, 6):
        memtx.train(runs.tiny(tmp_path, train={"steps": steps, "csv": True, "wandb": "memories"}), tmp_path / "run", say=str)
    found = {(int(step), name) for step, name, _ in rows(tmp_path / "run")[1:]}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert found == {(line["step"], name) for line in lines for name in line if name != "step"}
    (sent,) = service.sent.values()
    assert [row["step"] for row in sent] == [line["step"] for line in lines] == [1, 2, 3, 3, 4, 5, 6, 6]
