"""An extension of griffe: the comment after a field of a class is its docstring in the API reference."""

from __future__ import annotations

import ast
import io
import tokenize
from functools import cache
from pathlib import Path

import griffe


@cache
def comments(path: Path) -> dict[int, str]:
    """Return the comments of a file by the number of their line."""
    lines = io.StringIO(path.read_text(encoding="utf-8")).readline
    tokens = tokenize.generate_tokens(lines)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


class Comments(griffe.Extension):
    """Gives each attribute without a docstring the comment at the end of its line."""

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **kwargs) -> None:
        """Set the docstring of an attribute."""
        if attr.docstring or not isinstance(attr.filepath, Path) or not attr.endlineno:
            return
        text = comments(attr.filepath).get(attr.endlineno, "")
        if text and not text.startswith(("type:", "noqa", "fmt:")):
            attr.docstring = griffe.Docstring(text, lineno=attr.endlineno, parent=attr)
