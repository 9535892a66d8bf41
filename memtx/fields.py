"""Conversion of mappings to frozen dataclasses. The type hint of a field determines its valid values.

`steps: Count` takes whole numbers of at least 1, `dropout: Share` takes numbers in [0, 1), and `tuple[tuple[str, int], ...]`
takes any number of such pairs, as tuples or lists. Any other value raises a UserError that names the field and the expected
form.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from memtx.errors import UserError, check_known


@dataclasses.dataclass(frozen=True)
class Range:
    """The finite numbers x with low <= x < below."""

    low: float
    below: float = math.inf

    def misses(self, number: float) -> str:
        """Return a description of the valid numbers, or "" if this number is valid."""
        if not math.isfinite(number):
            return "a finite number"
        if self.low <= number < self.below:
            return ""
        return f"at least {self.low}" if number < self.low and self.below > 1 else f"in [{self.low}, {self.below})"


PLAIN = {int: Range(-(2**31), 2**31), float: Range(-math.inf)}  # ranges of plain types; device integers have 32 bits

Natural = Annotated[int, Range(0, 2**31)]
Count = Annotated[int, Range(1, 2**31)]
Seed = Annotated[int, Range(0, 2**32)]  # jax.random.key distinguishes only these
Share = Annotated[float, Range(0, 1)]
NonNegative = Annotated[float, Range(0)]


class _MisfitError(Exception):
    """A value has the wrong form. The message describes the right one."""


def to_dataclass(cls, values: Mapping, path: str = ""):
    """Build a dataclass from a mapping of some of its fields. Lists become tuples, and integers are valid floats.

    path: the path of the mapping in the config, for errors. Raises UserError for an unknown field or a wrong value.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{path or 'a config'} is a group of keys, not {_short(values)}")
    hints, fields = _hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    fits = {}
    for name, value in values.items():
        check_known(name, fields, f"key in {path}" if path else "config group")
        fits[name] = fitted(value, hints[name], f"{path}.{name}" if path else name, _default(fields[name]))
    try:
        return cls(**fits)
    except UserError as error:  # raised by __post_init__, which does not know the path in the config
        raise UserError(f"{path}: {error}") from None


def fitted(value: Any, hint: Any, name: str, default: Any = None) -> Any:
    """Return the value converted to its type hint. Raises UserError, with `name` and the expected form, if it is not valid.

    default: if it is a tuple, the error shows it as an example instead of one made from the hint.
    """
    if dataclasses.is_dataclass(hint) and not isinstance(value, typing.cast(type, hint)):
        return to_dataclass(hint, value, name)
    try:
        return _fit(value, hint)
    except _MisfitError as error:
        form = f"like {default!r}" if isinstance(default, tuple) and default else error
        raise UserError(f"{name} must be {form}, not {_short(value)}") from None


def plain(value: Any) -> Any:
    """Convert dataclasses and mappings to dicts, NumPy and JAX numbers to Python numbers, and paths to strings, recursively."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = map(plain, value)
        return list(parts) if isinstance(value, list) else tuple(parts)
    if hasattr(value, "tolist"):
        return value.tolist()
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _fit(value: Any, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        hint, limits = args
        return _number(value, hint, limits)
    if hint in PLAIN:
        return _number(value, hint, PLAIN[hint])
    if origin in (typing.Union, types.UnionType):
        return _any_of(value, args)
    if origin is tuple:
        parts = value if isinstance(value, (list, tuple)) else None
        inner = args[:1] * len(parts or ()) if args[1:] == (...,) else args
        if parts is None or len(parts) != len(inner):
            raise _MisfitError(f"like {_form(hint)}")
        try:
            return tuple(map(_fit, parts, inner))
        except _MisfitError:
            raise _MisfitError(f"like {_form(hint)}") from None
    if hint is tuple and isinstance(value, list):
        return tuple(value)
    if hint is not Any and not isinstance(value, origin or hint):
        raise _MisfitError((origin or hint).__name__)
    return value


def _number(value: Any, kind: type, limits: Range) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise _MisfitError(kind.__name__)
    if form := limits.misses(value):
        raise _MisfitError(form)
    return value


def _any_of(value: Any, hints: tuple) -> Any:
    forms = []
    for hint in hints:
        try:
            return _fit(value, hint)
        except _MisfitError as error:
            forms.append(str(error))
    raise _MisfitError(" or ".join(forms))


def _form(hint: Any) -> str:
    """Return an example of a hint's values as Python source: ((('text', ...), 1), ...)."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return _form(args[0])
    if typing.get_origin(hint) is tuple:
        return f"({', '.join('...' if part is ... else _form(part) for part in args)})"
    return {int: "1", float: "1.0", str: "'text'", bool: "True"}.get(hint, "{...}")


@functools.cache
def _hints(cls) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError:  # a class in a function: its names cannot be looked up
        return {f.name: type(_default(f)) for f in dataclasses.fields(cls)}


def _default(f: dataclasses.Field) -> Any:
    return f.default_factory() if callable(f.default_factory) else f.default


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
