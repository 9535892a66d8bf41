"""Readers of fields in a config.json or in GGUF metadata, with checks of type and range.

A `null` counts as a missing field. Every function raises a UserError that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memtx.errors import UserError, brief

MOST = 1 << 24  # of a width, a vocabulary or a context; a larger value is a mistake
MOST_LAYERS = 4096
LARGEST = 1e30  # of a real number, so that it is finite in float32


def integer(fields: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1, most: int = MOST) -> int:
    """Return a whole number from `least` to `most`. 64.0 is valid. default: None if the field is required."""
    value = _given(fields, key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most or value != int(value):
        raise UserError(f"{key} must be a whole number from {least} to {most}, not {brief(value)}")
    return int(value)


def layers(fields: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """Return the number of layers."""
    return integer(fields, key, default, most=MOST_LAYERS)


def number(fields: Mapping[str, Any], key: str, default: float | None = None, *, zero: bool = False) -> float:
    """Return a number above 0, or at least 0 if `zero`. default: None if the field is required."""
    value = _given(fields, key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 < value < LARGEST or (zero and value == 0)):
        raise UserError(f"{key} must be a number {'from' if zero else 'above'} 0, not {brief(value)}")
    return float(value)


def flag(fields: Mapping[str, Any], key: str, default: bool) -> bool:
    """Return a boolean."""
    value = _given(fields, key, default)
    if not isinstance(value, bool):
        raise UserError(f"{key} must be true or false, not {brief(value)}")
    return value


def text(fields: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """Return a string. default: None if the field is required."""
    value = _given(fields, key, default)
    if not isinstance(value, str):
        raise UserError(f"{key} must be a string, not {brief(value)}")
    return value


def texts(fields: Mapping[str, Any], key: str) -> list[str]:
    """Return a list of strings, which is empty if the field is missing."""
    value = _given(fields, key, [])
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise UserError(f"{key} must be a list of strings, not {brief(value)}")
    return value


def table(fields: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return an object {...}, which is empty if the field is missing."""
    value = _given(fields, key, {})
    if not isinstance(value, Mapping):
        raise UserError(f"{key} must be an object {{...}}, not {brief(value)}")
    return value


def _given(fields: Mapping[str, Any], key: str, default: Any) -> Any:
    value = fields.get(key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"it has no {key!r}")
    return value
