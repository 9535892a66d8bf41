"""The layout of the package: imports point down, there are no cycles, and only `memtx/memory` knows mechanisms by name."""

import ast
import functools
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import memtx
from memtx.memory import MEMORIES

PACKAGE = Path(memtx.__file__).parent
# Each room imports only rooms above it. `memtx/__init__.py` gathers the public names and may import all of them.
ORDER = [
    *("core", "errors", "progress", "fields", "config", "ops", "nn", "memory", "files", "data", "tasks", "models", "sharding"),
    *("pretrained", "generate", "evaluation", "training", "runs", "library", "chat", "sweep", "reports", "contract", "cli"),
]
PLAIN = {"full", "window", "bidirectional"}  # the attention of plain Transformers, of which pretrained models are built
PATHS = sorted(PACKAGE.rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(("memtx", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module(path): path for path in PATHS}


@functools.cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in PATHS}


def imported(tree: ast.AST) -> set[str]:
    """The modules of memtx that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("memtx"):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("memtx")}
    return {owner(name) for name in names} - {"memtx"}


def owner(name: str) -> str:
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


@functools.cache
def imports() -> dict[str, set[str]]:
    return {module(path): imported(tree) - {module(path)} for path, tree in trees().items()}


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_every_room_is_in_the_order():
    assert {room(name) for name in MODULES} - {""} <= {*ORDER}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name):
    if not room(name):
        return
    up = [target for target in imports()[name] if ORDER.index(room(target)) > ORDER.index(room(name))]
    assert not up, f"{name} imports {', '.join(up)}, which comes later in the order of rooms"


def test_no_module_imports_itself_through_others():
    graph = {name: targets for name, targets in imports().items() if room(name)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_a_cycle_would_be_found():
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()


def test_no_module_outside_memory_names_a_mechanism():
    names = set(MEMORIES) - PLAIN
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno} {node.value!r}"
        for path, tree in trees().items()
        if room(module(path)) not in ("memory", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert not found, found


def test_files_are_short_enough_to_read():
    assert not [f"{path.name}: {n} lines" for path in PATHS if (n := len(path.read_text().splitlines())) > 400]


@functools.cache
def functions() -> list[tuple[str, ast.FunctionDef]]:
    return [
        (f"{module(path)}.{node.name}", node)
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]


def test_functions_fit_on_a_screen():
    assert not [f"{name}: {lines}" for name, f in functions() if (lines := (f.end_lineno or 0) - f.lineno + 1) > 50]


def test_functions_take_at_most_eight_parameters():
    def count(f: ast.FunctionDef) -> int:
        names = [a.arg for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)]
        return len([name for name in names if name not in ("self", "cls")])

    assert not [f"{name}: {n}" for name, f in functions() if (n := count(f)) > 8]


def test_every_room_has_a_sign_on_its_door():
    silent = [str(path) for path, tree in trees().items() if path.name == "__init__.py" and not ast.get_docstring(tree)]
    assert not silent


def test_the_tests_of_a_file_share_a_process_when_there_are_several(request):
    """pytest-xdist writes the group into the id, or, with a pytest that it does not know, ignores all groups."""
    if getattr(request.config.option, "loadgroup", False):
        assert request.node.nodeid.endswith("@tests/test_layout.py")
