"""Sweep files: every run is checked, and named for good, before anything runs."""

import json

import pytest

from memtx.config import to_json
from memtx.errors import UserError
from memtx.sweep.spec import load_sweep
from tests.test_docs import FILES


def test_overrides_reach_the_config_over_what_all_runs_have(sweep_file):
    sweep = load_sweep(sweep_file("[{'seed': 3, 'optim.lr': 1, 'train.steps': 9, 'data.task.pairs': 1}, {}]"))
    changed, base = (run.config for run in sweep.runs.values())
    assert (changed.seed, changed.optim.lr, changed.train.steps, changed.data.task.pairs) == (3, 1, 9, 1)
    assert (base.seed, base.train.steps, base.data.task.pairs, base.model.width) == (0, 4, 2, 16)


def test_names_say_what_differs_and_depend_on_nothing_else(sweep_file):
    first = list(load_sweep(sweep_file("product({'optim.lr': [0.1, 0.2], 'seed': [0, 1]})")).runs)
    more = list(load_sweep(sweep_file("product({'seed': [2, 1, 0], 'optim.lr': [0.3, 0.2, 0.1]})")).runs)
    assert len(set(first)) == 4
    assert first[0].startswith("lr=0.1_seed=0_")
    assert len(set(more)) == 9
    again = list(load_sweep(sweep_file("product({'optim.lr': [0.2, 0.1], 'seed': [0, 1]})")).runs)
    assert set(again) == set(first)


def test_another_argument_of_the_config_is_in_the_name_and_in_the_settings(sweep_file):
    spec = "configs/task.py:task=mqar,size=micro,memory=xl"
    (run,) = load_sweep(sweep_file(f"[{{'config': '{spec}', 'model.stacks': [[['xl'], 1]], 'seed': 1}}]")).runs.values()
    assert run.name.startswith("memory=xl_stacks=")
    assert run.settings == {"task": "mqar", "size": "micro", "memory": "xl", "model.stacks": [[["xl"], 1]], "seed": 1}
    assert list(run.config.model.memory) == ["xl"]


def test_a_memory_in_a_file_has_its_registered_name_in_the_settings(sweep_file, tmp_path):
    (tmp_path / "mine.py").write_text(FILES["my_memory.py"])
    spec = f"configs/task.py:task=mqar,size=micro,memory={tmp_path / 'mine.py'}:MyMemory"
    [run] = load_sweep(sweep_file(f"[{{'config': '{spec}'}}]")).runs.values()
    assert run.settings["memory"] == "my_memory"


def test_numbers_of_numpy_give_the_runs_that_python_numbers_give(sweep_file):
    runs = "[{'seed': SEED, 'optim.lr': RATE, 'model.tied': TIED, 'match': {'params': PARAMS}}]"
    numpy = "import numpy as np; SEED, RATE, TIED, PARAMS = np.int64(3), np.float64(0.5), np.bool_(True), np.int64(9000)"
    [run] = load_sweep(sweep_file(runs, numpy)).runs.values()
    [other] = load_sweep(sweep_file(runs, "SEED, RATE, TIED, PARAMS = 3, 0.5, True, 9000")).runs.values()
    assert (run.name, run.overrides, run.match, run.values) == (other.name, other.overrides, other.match, other.values)
    assert json.dumps(run.overrides) == json.dumps(other.overrides)


def test_names_are_folders(sweep_file):
    (run,) = load_sweep(sweep_file("[{'eval.prompt': '../../a b:c'}]")).runs.values()
    assert "/" not in run.name
    assert " " not in run.name


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("[{'optim.lrr': 1}]", "did you mean lr"),
        ("[{'optm.lr': 1}]", "did you mean optim"),
        ("[{'sed': 1}]", "did you mean seed"),
        ("[{'optim.lr.x': 1}]", "optim.lr is not a group"),
        ("[{'optim.lr': 'fast'}]", "optim.lr must be float"),
        ("[{'optim.lr': -1}]", "optim.lr must be at least 0"),
        ("[{'seed': -1}]", "seed must be at least 0"),
        ("[{'seed': 2**32}]", "seed must be in"),
        ("[{'seed': {1}}]", "seed must be int"),
        ("[{'model.stacks': [['window'], 1]}]", "model.stacks must be like"),
        ("[{'match': {'params': float('nan')}}]", "finite number above 0"),
        ("[{'model.num_heads': 3}]", "does not divide"),
        ("[{'config': 'configs/none.py'}]", "no config file"),
        ("[{'config': 'configs/task.py:memory=xxl'}]", "did you mean xl"),
        ("[{'match': {'parms': 1}}]", "did you mean params"),
        ("[{'seed': 1}, {'seed': 1}]", "twice"),
        ("[1]", "must yield dicts"),
        ("[]", "no runs"),
        ("product({'seed': 3})", "must be a list"),
    ],
)
def test_what_is_wrong_with_any_run_is_said_at_the_start(sweep_file, runs, message):
    with pytest.raises(UserError, match=message):
        load_sweep(sweep_file(runs))


def test_a_file_that_is_no_sweep_is_refused(tmp_path):
    (tmp_path / "a.py").write_text("config = 'configs/lm.py'")
    with pytest.raises(UserError, match=r"needs config = .* and def sweep"):
        load_sweep(tmp_path / "a.py")
    (tmp_path / "a.py").write_text("def sweep(:")
    with pytest.raises(UserError, match="cannot read the sweep file: invalid syntax"):
        load_sweep(tmp_path / "a.py")
    with pytest.raises(UserError, match="no sweep file"):
        load_sweep(tmp_path / "b.py")


def test_a_run_knows_its_config_again_with_what_was_solved_for_it(sweep_file):
    (run,) = load_sweep(sweep_file("[{'seed': 1}]")).runs.values()
    (other,) = load_sweep(sweep_file("[{'seed': 1, 'model.width': 32}]")).runs.values()
    assert run.is_of(to_json(run.config), {})
    assert not run.is_of(to_json(other.config), {})
    assert run.is_of(to_json(other.config), {"model.width": 32})
