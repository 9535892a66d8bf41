"""HTML pages that need no other files. Each has the rules of style.css and then its own rules."""

from __future__ import annotations

from importlib import resources
from typing import Any

from memtx.errors import optional

STYLE = "/* style.css */"  # in the style element of each page


def read_page(package: str, name: str) -> str:
    """Return an HTML file of a package, with style.css in place of STYLE."""
    style = (resources.files("memtx.files") / "style.css").read_text(encoding="utf-8")
    return (resources.files(package) / name).read_text(encoding="utf-8").replace(STYLE, style.strip())


def read_template(package: str, name: str) -> Any:
    """Return the jinja2 template of a page. Raises UserError if jinja2 is not installed."""
    jinja2 = optional("jinja2", "report")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(read_page(package, name))
