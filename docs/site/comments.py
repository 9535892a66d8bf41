"""An extension of griffe for the API reference.

- The comment after a field of a class becomes the docstring of the field.
- Lines of a docstring that explain a name, `name_BT  meaning`, become a list.
"""

from __future__ import annotations

import io
import re
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

import griffe


@cache
def comments(path: Path) -> dict[int, str]:
    """Return the comments of a file by the number of their line."""
    lines = io.StringIO(path.read_text(encoding="utf-8")).readline
    tokens = tokenize.generate_tokens(lines)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def listed(text: str) -> str:
    """Return a docstring whose lines of a name and its meaning are items of a list."""
    text = re.sub(r"^(\w[\w.]*(?:, \w+)*) {2,}(?=\S)", r"- `\1`: ", text, flags=re.MULTILINE)
    return re.sub(r"(?<=\n)(?=- `)(?<!\n\n)", "\n", text) if "\n- `" in text else text


class Comments(griffe.Extension):
    """Completes docstrings."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Write the lists of a docstring."""
        if obj.docstring:
            obj.docstring.value = listed(obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Set the docstring of an attribute."""
        if attr.docstring or not isinstance(attr.filepath, Path) or not attr.endlineno:
            return
        text = comments(attr.filepath).get(attr.endlineno, "")
        if text and not text.startswith(("type:", "noqa", "fmt:")):
            attr.docstring = griffe.Docstring(text, lineno=attr.endlineno, parent=attr)
