"""The public names of memtx, which are imported when they are first used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import memtx

LAZY = """
import sys
import memtx

assert {"train", "generate", "LM"} <= {*dir(memtx)}
assert "jax" not in sys.modules
from memtx.generate import Sampling
import memtx.generate.chat

assert callable(memtx.generate), memtx.generate  # the function, not the subpackage of the same name
assert memtx.generate is memtx.generate.__globals__["generate"]
assert memtx.Sampling is Sampling
assert memtx.core.scan is memtx.scan
assert memtx.memory.MEMORIES is memtx.MEMORIES
"""


def typed() -> dict[str, str]:
    """The module of each name that `memtx/__init__.py` imports for type checkers."""
    tree = ast.parse(Path(memtx.__file__).read_text(encoding="utf-8"))
    imports = next(node for node in tree.body if isinstance(node, ast.If)).body
    return {alias.name: node.module for node in imports if isinstance(node, ast.ImportFrom) for alias in node.names}


def test_python_and_type_checkers_see_the_same_names():
    assert typed() == memtx._HOME
    assert sorted(memtx.__all__) == sorted(memtx._HOME)


@pytest.mark.parametrize("name", memtx.__all__)
def test_every_public_name_can_be_imported(name):
    assert getattr(memtx, name) is getattr(sys.modules[memtx._HOME[name]], name)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'memtx' has no attribute 'trian'"):
        _ = memtx.trian
    with pytest.raises(ImportError, match="cannot import name 'trian'"):
        from memtx import trian  # noqa: F401


def test_names_are_imported_when_they_are_first_used():
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
