"""Mechanisms from outside the package are loaded from files and entry points, and a run remembers where they came from."""

import importlib.metadata

import pytest

from memtx.core import Memory
from memtx.errors import UserError
from memtx.memory import MEMORIES
from memtx.memory.registry import Registry, is_own, load_class, snake_case
from memtx.memory.window import Window

NOTHING = """
import dataclasses
from memtx.core import Memory


class ReadsNothing(Memory):
    site = "residual"
    kind = "nothing"

    @dataclasses.dataclass(frozen=True)
    class Config:
        scale: float = 1.0

    tiny = (Config(),)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(NOTHING)
    return path


def test_a_class_in_a_file_is_registered_under_its_name_in_snake_case(file):
    registry = Registry({})
    assert registry.add(f"{file}:ReadsNothing") == "reads_nothing"
    assert registry["reads_nothing"].kind == "nothing"
    assert is_own(f"{file}:ReadsNothing")
    assert not is_own("window")
    assert snake_case("MyKDA2Memory") == "my_kda2_memory"


def test_an_origin_restores_the_mechanism_in_another_process(file):
    first, second = Registry({}), Registry({})
    name = first.add(f"{file}:ReadsNothing")
    second.restore(name, first.origins[name])
    assert second[name].__name__ == "ReadsNothing"


def test_a_file_that_is_gone_or_has_changed_is_named(file):
    registry = Registry({})
    name = registry.add(f"{file}:ReadsNothing")
    origin = registry.origins[name]
    file.write_text(NOTHING + "\n# a comment\n")
    with pytest.warns(UserWarning, match=r"mine.py, from which the memory reads_nothing comes, has changed"):
        Registry({}).restore(name, origin)
    file.unlink()
    with pytest.raises(UserError, match=r"comes from .*mine.py, which is gone"):
        Registry({}).restore(name, origin)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no class ReadsNothing"),
        ("class ReadsNothing: pass", "no class ReadsNothing that is a memtx.core.Memory"),
        ("from memtx.core import Memory\nclass ReadsNothing(Memory): pass", "lacks site, kind, Config, tiny"),
        ("1 / 0", "ZeroDivisionError"),
        ("from memtx.core import Memory\nclass ReadsNothing(Memory):\n    site = 'residul'", "must be one of attention"),
    ],
)
def test_a_file_without_a_mechanism_is_one_line(file, text, message):
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_class(f"{file}:ReadsNothing")
    assert "\n" not in str(error.value)


def test_a_name_of_memtx_is_not_replaced(file):
    with pytest.raises(UserError, match="memtx has a memory named reads_nothing already"):
        Registry({"reads_nothing": Window}).add(f"{file}:ReadsNothing")


def test_entry_points_add_mechanisms_of_packages(monkeypatch):
    entry = importlib.metadata.EntryPoint("theirs", "memtx.memory.window:Window", "memtx.memories")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry] if group == "memtx.memories" else [])
    registry = Registry({})
    assert registry["theirs"] is Window
    registry.restore("theirs", registry.origins["theirs"])
    with pytest.raises(UserError, match="comes from the package gone 1.0, which is not installed"):
        registry.restore("gone", "package gone 1.0")


def test_memtx_contains_only_memories():
    assert all(issubclass(cls, Memory) for cls in MEMORIES.values())
