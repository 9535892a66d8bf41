"""An extension of griffe for the API reference.

- The comment after a field of a class becomes the docstring of the field.
- Docstrings become Markdown.
"""

from __future__ import annotations

import io
import re
import tokenize
from functools import cache
from pathlib import Path
from typing import Any

import griffe

NAMED = r"^(\w[\w.]*(?:, \w+)*) {2,}(?=\S)(?!.*\S {3})"  # a line that explains one name


@cache
def comments(path: Path) -> dict[int, str]:
    """Return the comments of a file by the number of their line."""
    lines = io.StringIO(path.read_text(encoding="utf-8")).readline
    tokens = tokenize.generate_tokens(lines)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def markdown(text: str) -> str:
    """Return a docstring as Markdown: names with meanings become a list, other paragraphs with columns a block of code."""
    return "\n\n".join(map(_paragraph, re.split(r"\n(?:[ \t]*\n)+", text)))


def _paragraph(text: str) -> str:
    lines = text.split("\n")
    if text.startswith(("- ", "    ")) or "```" in text:
        return text
    if all(re.match(NAMED, line) for line in lines) and len(lines) > 1:
        return "\n".join(re.sub(NAMED, r"- `\1`: ", line) for line in lines)
    if any(line.startswith("    ") or re.search(r"\S {3,}\S", line) for line in lines):
        return "\n".join(["```text", *lines, "```"])
    return text


class Comments(griffe.Extension):
    """Completes docstrings."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Convert a docstring."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Set the docstring of an attribute."""
        if attr.docstring or not isinstance(attr.filepath, Path) or not attr.endlineno:
            return
        text = comments(attr.filepath).get(attr.endlineno, "")
        if text and not text.startswith(("type:", "noqa", "fmt:")):
            attr.docstring = griffe.Docstring(text, lineno=attr.endlineno, parent=attr)
