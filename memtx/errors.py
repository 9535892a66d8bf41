"""Errors that the user can fix: one exception, and checks that suggest the nearest valid name."""

import difflib
import importlib
import os
import reprlib
import textwrap
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class UserError(Exception):
    """An error that the user can fix. The command line shows it as one line, without a traceback, and exits with status 2."""


def check_known(name: str, known, what: str) -> None:
    """Raise a UserError that names the nearest of `known` if `name` is not one of them. what: the kind of name."""
    known = sorted(known)
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"unknown {what} {name!r}; {hint}known: {', '.join(known)}")


def positive(group, *names: str, path: str = "") -> None:
    """Raise a UserError if one of these fields of a dataclass is below 1. path: a prefix of the field's name in the message."""
    for name in names:
        if getattr(group, name) < 1:
            raise UserError(f"{path}{name} must be at least 1, not {getattr(group, name)}")


def optional(module: str, extra: str = "hf") -> ModuleType:
    """Import a module that memtx does not require. Raises a UserError that names the extra if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{module.partition('.')[0]} is not installed; run pip install '.[{extra}]' in the checkout of memtx"
        ) from error


def printable(name: str) -> str:
    """Return a file name that can be printed and stored. Bytes that are not UTF-8 become escapes such as \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def escaped(text: str, keep: str = "") -> str:
    """Return a text that a terminal can show. Characters that are not printable, except those in `keep`, become escapes."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def check_utf8(path: object, what: str) -> None:
    """Raise a UserError unless a path is UTF-8, as libraries that write to it require."""
    if printable(str(path)) != str(path):
        raise UserError(f"{what} {printable(str(path))} has a name that is not UTF-8; choose another name")


def quoted(names: Iterable[object], most: int = 10) -> str:
    """Return a list of names for an error message: the first `most`, each shortened, and the number of the others."""
    names = list(names)
    shown = ", ".join(repr(textwrap.shorten(str(name), 60) or str(name)[:60]) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: "; the nearest: a, b, c", or a few known names if none is similar."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    shown = near or names[:3]
    return f"; {'the nearest' if near else 'there are'}: {', '.join(shown)}" if names else ""


def brief(value: Any) -> str:
    """Return a value, or the text of an exception, on one line for an error message. Long text is cut."""
    shown = str(value) if isinstance(value, Exception) else reprlib.repr(value)
    return " ".join(shown.split())[:120]


def listed(items: Iterable[str], most: int = 6, separator: str = ", ") -> str:
    """Return a list of at most `most` items for an error message, each on one line: "a, b, ... and 7 more"."""
    found = [" ".join(item.split())[:120] for item in items]
    more = [f"... and {len(found) - most} more"] if len(found) > most else []
    return separator.join([*found[:most], *more])
