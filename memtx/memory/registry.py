"""The registry of mechanisms, which also loads mechanisms from outside the package.

A mechanism in a file is named `path/to/file.py:ClassName` in a config. It is registered under its class name in snake case. A
package offers mechanisms through the entry-point group `memtx.memories`. The config of a run keeps the origin
of every mechanism that memtx does not contain, so that the run can be evaluated, resumed and loaded later.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import re
import sys
import warnings
from pathlib import Path

from memtx.core import Memory
from memtx.errors import UserError, check_known

GROUP = "memtx.memories"
REQUIRED = ("site", "kind", "Config", "tiny")


def load_class(given: str) -> type[Memory]:
    """Return the class that `path/to/file.py:ClassName` names.

    Raises UserError if there is no such file or class, if the class is not a Memory, or if it lacks a required attribute.
    """
    file, _, name = given.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"no file {file!r}; name a memory in a file as path/to/file.py:ClassName")
    module_name = f"memtx_own_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look up their module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    cls = getattr(module, name, None)
    if not (isinstance(cls, type) and issubclass(cls, Memory)):
        raise UserError(f"{path} has no class {name} that is a memtx.core.Memory")
    if missing := [attribute for attribute in REQUIRED if not hasattr(cls, attribute)]:
        raise UserError(f"{name} in {path} lacks {', '.join(missing)}; see memtx.core.Memory")
    return cls


def is_own(name: str) -> bool:
    """Return whether the name of a memory has the form path/to/file.py:ClassName."""
    return ".py:" in name


def snake_case(name: str) -> str:
    """Return a name in snake case: "MyMemory" -> "my_memory"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def registered_name(given: str) -> str:
    """Return the name under which a memory is registered: `path/to/file.py:ClassName` gives class_name."""
    return snake_case(given.rpartition(":")[2]) if is_own(given) else given


class Registry(dict[str, type[Memory]]):
    """Mechanisms by name: those of memtx, of installed packages, and of files that were added.

    origins: for each mechanism outside memtx, its origin as `restore` takes it.
    """

    def __init__(self, contained: dict[str, type[Memory]]):
        super().__init__(contained)
        self.origins: dict[str, str] = {}
        for entry in importlib.metadata.entry_points(group=GROUP):
            package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
            self._add(entry.name, entry.load(), f"package {package}")

    def find(self, name: str) -> str:
        """Return the registered name of a memory. A `path/to/file.py:ClassName` is registered first.

        Raises UserError if it is unknown or cannot be loaded.
        """
        if is_own(name):
            return self.add(name)
        if name.endswith(".py"):
            raise UserError(f"{name} names no class; give {name}:ClassName")
        check_known(name, [*self, "FILE.py:CLASS"], "memory")
        return name

    def add(self, given: str) -> str:
        """Register `path/to/file.py:ClassName` and return its name. Raises UserError if that fails or the name is taken."""
        cls = load_class(given)
        path = Path(given.rpartition(":")[0]).resolve()
        origin = f"{path}:{cls.__name__} {_digest(path)}"
        return self._add(snake_case(cls.__name__), cls, origin)

    def restore(self, name: str, origin: str) -> None:
        """Register a mechanism from the origin in a config.

        Raises UserError if its file or package is gone. A file that has changed is used with a warning.
        """
        if origin.startswith("package "):
            if name not in self:
                raise UserError(f"the memory {name} comes from the {origin}, which is not installed")
            return
        given, _, digest = origin.rpartition(" ")
        path = Path(given.rpartition(":")[0])
        if not path.is_file():
            raise UserError(f"the memory {name} comes from {path}, which is gone; put the file back")
        if _digest(path) != digest:
            warnings.warn(f"{path}, from which the memory {name} comes, has changed since the run began", stacklevel=2)
        if self.origins.get(name, "").partition(" ")[0] != given:
            self.add(given)

    def _add(self, name: str, cls: type[Memory], origin: str) -> str:
        if name in self and name not in self.origins:
            raise UserError(f"memtx has a memory named {name} already; rename the class in {origin.partition(' ')[0]}")
        self[name], self.origins[name] = cls, origin
        return name


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
