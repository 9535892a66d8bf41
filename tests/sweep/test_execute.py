"""One run of a sweep, in this process: the content of its record, and that it never runs twice."""

import json

import pytest

import memtx
from memtx import cli
from memtx.sweep import record as records
from memtx.sweep.execute import execute, folder_of
from memtx.sweep.spec import load_sweep
from memtx.training import provenance


def quiet(line):
    pass


@pytest.mark.thorough
def test_a_run_is_recorded_with_all_it_takes_to_do_it_again(sweep_file, tmp_path):
    sweep = load_sweep(
        sweep_file("[{'seed': 5}]", "def run(config, workdir):\n    return {'twice': 2 * config.seed, 'none': float('nan')}")
    )
    (name,) = sweep.runs
    assert execute(sweep, name, tmp_path / "w", say=quiet) == "finished"
    record = records.read(folder_of(tmp_path / "w", name))
    assert record["overrides"] == {"seed": 5}
    assert record["seed"] == record["config"]["seed"] == 5
    assert record["budget"].keys() == {"params", "flops_per_token", "state_bytes"}
    assert 0 <= record["result"]["eval/accuracy"] <= 1
    assert record["result"]["twice"] == 10
    assert record["result"]["none"] is None
    assert record["evaluation"]["carried"]["accuracy"] == record["result"]["eval/accuracy"]
    assert record["train_tokens_per_s"] > 0
    assert record["seconds"] > 0
    assert record["attempts"] == 1
    assert record["code"] == provenance.code()
    assert record["versions"]["jax"]
    assert record["machine"]["cores"] >= 1
    assert record["started"].endswith("+00:00")

    before = (folder_of(tmp_path / "w", name) / "run.json").read_bytes()
    assert execute(sweep, name, tmp_path / "w", say=quiet) == "finished"
    assert (folder_of(tmp_path / "w", name) / "run.json").read_bytes() == before


def test_a_run_that_fails_says_why_in_one_line_and_may_be_tried_again(sweep_file, tmp_path, capsys):
    more = "train = False\ndef run(config, workdir):\n    return {'x': 1 / (config.seed - 1)}"
    sweep, workdir = load_sweep(sweep_file("product({'seed': [1, 2]})", more)), tmp_path / "w"
    broken, sound = sweep.runs
    assert execute(sweep, broken, workdir, say=quiet) == "failed"
    assert "Traceback" in capsys.readouterr().err
    assert records.read(folder_of(workdir, broken))["error"] == "ZeroDivisionError: division by zero"
    assert execute(sweep, sound, workdir, say=quiet) == "finished"
    assert records.read(folder_of(workdir, sound))["result"] == {"x": 1}
    assert not (folder_of(workdir, sound) / "metrics.jsonl").exists()  # train = False
    sweep = load_sweep(sweep_file("product({'seed': [1, 2]})", "train = False\ndef run(config, workdir):\n    return {}"))
    assert execute(sweep, broken, workdir, say=quiet) == "finished"
    record = records.read(folder_of(workdir, broken))
    assert (record["attempts"], record["error"]) == (2, "")


def test_what_run_returns_must_be_json(sweep_file, tmp_path):
    sweep = load_sweep(sweep_file("[{}]", "train = False\ndef run(config, workdir):\n    return {'x': object()}"))
    (name,) = sweep.runs
    assert execute(sweep, name, tmp_path / "w", say=quiet) == "failed"
    assert "must return a dict" in records.read(folder_of(tmp_path / "w", name))["error"]


@pytest.mark.thorough
def test_a_budget_is_met_and_recorded(sweep_file, tmp_path):
    more = "train = False\ndef run(config, workdir):\n    return {'width': config.model.width}"
    sweep = load_sweep(sweep_file("[{'match': {'params': 20_000}}]", more))
    (name,) = sweep.runs
    assert name.startswith("params=20000_")
    assert execute(sweep, name, tmp_path / "w", say=quiet) == "finished"
    record = records.read(folder_of(tmp_path / "w", name))
    assert record["solved"]["model.width"] == record["result"]["width"] == record["config"]["model"]["width"]
    assert abs(record["budget"]["params"] / 20_000 - 1) < 0.05
    assert sweep.runs[name].is_of(record["config"], record["solved"])


def test_runs_and_their_states_are_listed(sweep_file, tmp_path, capsys):
    path = sweep_file("product({'seed': [0, 1]})", "train = False\ndef run(config, workdir):\n    return {}")
    argv = ["sweep", f"--sweep={path}", f"--workdir={tmp_path / 'w'}"]
    names = list(load_sweep(path).runs)
    with pytest.raises(SystemExit) as end:
        cli.main([*argv, f"--run={names[1]}"])
    assert end.value.code == 0
    capsys.readouterr()
    cli.main([*argv, "--list"])
    assert capsys.readouterr().out.splitlines() == [f"waiting   {names[0]}", f"finished  {names[1]}"]


def test_the_machine_and_the_code_are_named():
    machine = provenance.machine()
    assert machine["cpu"]
    assert machine["memory_gb"] > 0
    assert json.dumps(machine)
    assert provenance.code()["version"] == provenance.versions()["memtx"] == memtx.__version__
