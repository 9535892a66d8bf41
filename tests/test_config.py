"""Config files become frozen, checked Configs, and every mistake is one line that says how to mend it."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from memtx.config import Config, Model, to_json
from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.models import patterns
from memtx.runs.configure import configure, get_config, load_config, parse_arg
from memtx.tasks import TASKS


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
        ({"model": {"rope_scaling": (8.0,)}}, "rope_scaling must be"),
        ({"train": {"batch": 6, "accumulate": 4}}, "accumulate=4 does not divide train.batch=6"),
        ({"train": {"steps": 0}}, "train.steps must be at least 1"),
        ({"optim": {"name": "adam"}}, "did you mean adamw"),
        ({"seed": "x"}, "seed must be int"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, "seed must be in"),
        ({"train": 5}, "train is a group of keys, not 5"),
        ({"train": {"steps": {"a": 1}}}, "train.steps must be int"),
        ({"train": {"steps": True}}, "train.steps must be int, not True"),
        ({"train": {"steps": 2**40}}, "train.steps must be in"),
        ({"memory": 5}, "memory must be Mapping"),
        ({"memory": {"window": 5}}, "memory.window is a group of keys"),
        ({"model": {"rope_scaling": ("a", 1, 1, 1)}}, r"model.rope_scaling must be like \(1.0, ...\), not \('a', 1, 1, 1\)"),
        ({"model": {"encoder": 5}}, r"model.encoder must be like \(\(\('text', ...\), 1\), ...\), not 5"),
        ({"data": {"curriculum": 5}}, r"data.curriculum must be like \(\(1, {...}\), ...\), not 5"),
        ({"data": {"corpus": "task:mqar", "curriculum": [[0, {}]]}}, "data.curriculum must be like"),
        ({"data": {"corpus": "task:mqar", "task": 5}}, "data.task is a group of keys"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(UserError, match=message):
        configure(values)


@pytest.mark.parametrize("stacks", [(("window",), 1), "window", 5, None, [["window", 1]], [[["window", 1], 1]], [[[], 1.5]]])
@pytest.mark.parametrize("groups", ["1", 1.5, True, 0, -1])
def test_near_misses_of_stacks_show_the_right_form(stacks, groups):
    for wrong in (stacks, ((("window",), groups),)):
        for read in (lambda model: configure({"model": model}), lambda model: get_config(model=model)):
            with pytest.raises(UserError, match=r"^model.stacks must be like \(\(\('window',\), 4\),\), not ") as error:
                read({"stacks": wrong})
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("group", "key", "wrong"),
    [
        ("optim", "lr", (-1, math.nan, math.inf)),
        ("optim", "b1", (-0.1, 1)),
        ("optim", "b2", (-0.1, 1)),
        ("optim", "warmup", (-1,)),
        ("optim", "weight_decay", (-1, math.nan)),
        ("optim", "clip", (-1,)),
        ("optim", "final_lr", (-1,)),
        ("optim", "new_lr", (-1,)),
        ("optim", "label_smoothing", (-0.1, 1)),
        ("model", "dropout", (-0.1, 1, math.nan)),
        ("model", "norm_epsilon", (-1e-6,)),
        ("model", "rope_base", (0, math.nan)),
        ("data", "mask", (-0.1, 1)),
        ("eval", "every", (-1,)),
        ("eval", "generate", (-1,)),
        ("checkpoint", "keep", (0,)),
        ("mesh", "data", (-1,)),
    ],
)
def test_numbers_outside_their_range_are_refused(group, key, wrong):
    for number in wrong:
        with pytest.raises(UserError, match=rf"^{group}.{key} must be "):
            configure({group: {key: number}})
    configure({group: {key: getattr(getattr(Config(), group), key)}})  # control


def test_numbers_of_numpy_and_paths_are_as_python_has_them():
    values = {"train": {"steps": np.int64(3)}, "optim": {"lr": np.float32(0.5)}, "model": {"tied": np.bool_(False)}}
    values |= {"seed": jnp.uint32(7), "data": {"cache": Path("cache")}}
    config = configure(values)
    assert config == configure(
        {"train": {"steps": 3}, "optim": {"lr": 0.5}, "model": {"tied": False}, "seed": 7, "data": {"cache": "cache"}}
    )
    assert json.dumps(to_json(config)) == json.dumps(to_json(configure(to_json(config))))
    assert configure(get_config(train={"steps": np.int64(3)})).train.steps == 3


def test_a_setting_is_checked_by_its_hint_in_any_mechanism(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Settings:
        sizes: tuple[int, ...] = (1, 2)

    monkeypatch.setitem(MEMORIES, "window", SimpleNamespace(**vars(MEMORIES["window"]) | {"Config": Settings}))
    with pytest.raises(UserError, match=r"memory.window.sizes must be like \(1, 2\), not \['a'\]"):
        configure({"memory": {"window": {"sizes": ["a"]}}})


def test_a_bad_argument_of_a_config_file_is_named():
    with pytest.raises(UserError, match="did you mean memory"):
        parse_arg("memry=xl", memory="window")
    with pytest.raises(UserError, match="key=value"):
        parse_arg("xl", memory="window")
    with pytest.raises(UserError, match="no config file"):
        load_config("configs/none.py")


@pytest.mark.parametrize(("text", "message"), [("x = 1", "needs def get_config"), ("def get_config(:", "invalid syntax")])
def test_a_file_that_is_no_config_is_one_line(tmp_path, text, message):
    (tmp_path / "a.py").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(tmp_path / "a.py"))


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


def test_build_takes_a_whole_config_and_refuses_its_model_group_alone():
    """The settings of memories are in another group, and would be lost."""
    import memtx

    config = memtx.get_config(model={"stacks": ((("window",), 1),), "width": 16, "num_heads": 2, "vocab_size": 8})
    config.memory.window.window = 3
    assert memtx.build(config).model.memory["window"].window == 3
    assert memtx.build(configure(config).model).model.memory["window"].window == 3
    with pytest.raises(UserError, match="build takes a whole config"):
        memtx.build(config.model)
