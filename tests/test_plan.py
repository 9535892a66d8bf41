"""Budgets are met by solving for a width, and told apart when they cannot be."""

import json

import pytest

from memtx import cli, load_config
from memtx.errors import UserError
from memtx.runs.configure import build, configure
from memtx.runs.plan import budget, make_plan


def values(memory: str = "window", **model) -> dict:
    config = load_config(f"configs/task.py:task=mqar,memory={memory},size=micro")
    config.data.task.vocabulary = 128
    config.model.update(model)
    return config.to_dict()


ALIKE = [pytest.param(name, marks=pytest.mark.thorough) for name in ("xl", "lstm")]  # their parameters grow as those of others


@pytest.mark.thorough
@pytest.mark.parametrize("memory", ["window", "gated_deltanet", "product_key", "rmt", *ALIKE])
def test_mechanisms_meet_a_number_of_parameters_within_two_per_cent(memory):
    found = make_plan(values(memory), {"params": 150_000})
    assert abs(found.budget.params / 150_000 - 1) < 0.02
    model = found.config.model
    assert (model.width, model.ff_dim) == (found.solved["model.width"], found.solved["model.ff_dim"])
    assert build(found.config.model, vocab_size=128).num_params() == found.budget.params  # of the config that is returned
    assert model.width % (2 * model.num_heads) == 0


@pytest.mark.thorough
def test_what_was_solved_for_is_the_budget_that_is_met():
    """Control: equal parameters are not equal FLOPs for a model with a table in the MLP's place."""
    by_params = make_plan(values("product_key"), {"params": 150_000}).budget
    by_flops = make_plan(values("product_key"), {"flops_per_token": 300_000}).budget
    assert abs(by_flops.flops_per_token / 300_000 - 1) < 0.02
    assert abs(by_params.flops_per_token / 300_000 - 1) > 0.05


def test_a_named_key_is_solved_for_alone():
    before = values()
    found = make_plan(before, {"state_bytes": 200_000}, "memory.window.window")
    assert found.solved.keys() == {"memory.window.window"}
    assert found.config.model.width == before["model"]["width"]
    assert abs(found.budget.state_bytes / 200_000 - 1) < 0.01


def test_a_width_solved_for_alone_takes_the_feed_forward_along():
    found = make_plan(values(), {"params": 150_000}, "model.width")
    model = found.config.model
    assert found.solved == {"model.width": model.width, "model.ff_dim": model.ff_dim}
    assert model.ff_dim / model.width == pytest.approx(2, abs=0.1)  # as in micro


def test_without_a_target_nothing_is_changed():
    found = make_plan(values(), {})
    assert found.config == configure(values())
    assert found.solved == {}
    assert found.budget == budget(configure(values()), vocab_size=128)


@pytest.mark.parametrize(
    ("match", "solve", "message"),
    [
        ({"parms": 1e6}, "", "did you mean params"),
        ({"params": -1}, "", "above 0"),
        ({"params": 1e6, "state_bytes": 1e3}, "", "one budget"),
        ({"params": 1e6}, "memory.window.windw", "did you mean window"),
        ({"params": 1e6}, "model.norm", "not an integer"),
        ({"params": 1e6}, "memory.window.window", "does not change params"),
        ({"params": 10}, "", "already costs"),
        ({}, "model.width", "needs a budget"),
    ],
)
def test_targets_that_cannot_be_met_are_said_so(match, solve, message):
    with pytest.raises(UserError, match=message):
        make_plan(values(), match, solve)


def test_the_command_line_says_which_keys_to_set(capsys):
    config = "--config=configs/task.py:task=mqar,memory=window,size=micro"
    cli.main(["plan", config, "--match=params=1e6", "--format=json"])
    found = json.loads(capsys.readouterr().out)
    cli.main(["plan", config, *(f"--config.{key}={number}" for key, number in found["solved"].items()), "--format=json"])
    assert json.loads(capsys.readouterr().out)["budget"] == found["budget"]
    cli.main(["plan", config, "--match=params=1e6"])
    assert f"--config.model.width={found['solved']['model.width']}" in capsys.readouterr().out
