"""Config files become frozen, checked Configs, and every mistake is one line that says how to mend it."""

import dataclasses
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from memtx import patterns
from memtx.config import Config, Model, configure, get_config, load_config, parse_arg, to_json
from memtx.data.tasks import TASKS
from memtx.errors import UserError
from memtx.memory import MEMORIES


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("size", ["tiny", "small", "base", "1b"])
def test_lm_config_takes_any_memory_at_any_size(memory, size):
    config = configure(load_config(f"configs/lm.py:memory={memory},size={size}"))
    assert set(config.model.memory) | {"window", "full"} >= {memory, *patterns.names(config.model.stacks)}
    assert memory in config.model.memory


def test_a_config_survives_json():
    config = configure(load_config("configs/lm.py:memory=xl"))
    assert configure(to_json(config)) == config


def test_zeros_stand_for_what_follows_from_other_keys():
    model = configure({"model": {"width": 64, "num_heads": 4}}).model
    assert (model.num_kv_heads, model.head_dim, model.ff_dim) == (4, 16, 176)


def test_an_int_passes_for_a_float_but_not_the_other_way():
    assert configure({"optim": {"lr": 1}}).optim.lr == 1
    with pytest.raises(UserError, match="train.steps must be int"):
        configure({"train": {"steps": 1.5}})


def only(memory: str) -> dict:
    return {"stacks": (((memory,), 1),)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, "did you mean train"),
        ({"train": {"stepz": 1}}, "did you mean steps"),
        ({"model": {"stacks": ((("windw",), 1),)}}, "did you mean window.*full"),
        ({"memory": {"windw": {}}}, "did you mean window"),
        ({"memory": {"window": {"windoww": 3}}}, "did you mean window"),
        ({"memory": {"window": {"window": 0}}}, "memory.window: window must be at least 1"),
        ({"model": only("titans_mag"), "memory": {"titans_mag": {"chunk": 0}}}, "memory.titans_mag: chunk must be at least 1"),
        ({"model": only("kda"), "memory": {"kda": {"chunk": 12}}}, "memory.kda: chunk must be a power of two"),
        ({"data": {"corpus": "task:mqar", "task": {"pairs": 0}}}, "data.task: "),
        ({"data": {"corpus": "task:mqar", "task": {"filler": "saef"}}}, "^data.task: unknown filler 'saef'; did you mean safe"),
        ({"model": {"width": 130}}, "num_heads=4 does not divide model.width=130"),
        ({"model": {"num_kv_heads": 3}}, "num_kv_heads=3 does not divide"),
        ({"model": {"width": 12}}, "even head_dim"),
        ({"model": {"activation": "gelux"}}, "did you mean gelu"),
        ({"model": {"rope_scaling": (8.0,)}}, "rope_scaling is"),
        ({"train": {"batch": 6, "accumulate": 4}}, "accumulate=4 does not divide train.batch=6"),
        ({"train": {"steps": 0}}, "train.steps must be at least 1"),
        ({"optim": {"name": "adam"}}, "did you mean adamw"),
        ({"seed": "x"}, "seed must be int"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(UserError, match=message):
        configure(values)


def test_a_bad_argument_of_a_config_file_is_named():
    with pytest.raises(UserError, match="did you mean memory"):
        parse_arg("memry=xl", memory="window")
    with pytest.raises(UserError, match="key=value"):
        parse_arg("xl", memory="window")
    with pytest.raises(UserError, match="no config file"):
        load_config("configs/none.py")


def test_every_setting_can_be_a_flag():
    classes = {**MEMORIES, **TASKS}
    assert not [
        (name, f.name) for name, cls in classes.items() for f in dataclasses.fields(cls.Config) if hasattr(ConfigDict, f.name)
    ]


def test_a_setting_that_no_flag_can_set_is_named(monkeypatch):
    @dataclasses.dataclass
    class Settings:
        keys: int = 3

    monkeypatch.setitem(MEMORIES, "own", SimpleNamespace(Config=Settings))
    with pytest.raises(UserError, match="own has a setting 'keys'"):
        get_config(model=only("own"))


def test_config_dicts_are_locked():
    with pytest.raises(AttributeError, match="steps"):
        get_config().train.stepz = 3


def test_defaults_are_a_sound_config():
    assert configure(Config()) == configure({})
    assert configure({}).model.stacks == Model().stacks
