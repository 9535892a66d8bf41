"""The text of the pages that are made from cards, docstrings, registries and notebooks, as Markdown."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from comments import markdown
from equations import equations

import memtx
from memtx.memory import MEMORIES
from memtx.tasks import TASKS

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "memtx/memory/cards"
ROWS = {row["name"]: row for row in json.loads((ROOT / "memtx/cli/catalog.json").read_text(encoding="utf-8"))}
ENTITIES = {ord(sign): f"&#{ord(sign)};" for sign in "&<>*_[]|\\~"}  # signs with a meaning in Markdown


def plain(text: object) -> str:
    """Return plain text as Markdown. Text in backticks stays code, and the name of a study becomes a link to it."""
    parts = re.split(r"(`[^`]+`)", " ".join(str(text).split()))
    shown = "".join(part if part.startswith("`") else part.translate(ENTITIES) for part in parts)
    return re.sub(r"experiments/((?:\w|&#95;)+)", lambda found: _study(found[1].replace("&#95;", "_")), shown)


def _study(name: str) -> str:
    return f"[{name}](../studies/{name}.md)" if (ROOT / "experiments" / name).is_dir() else f"experiments/{name}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table. The cells are Markdown."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def items(texts: Iterable[str]) -> str:
    """Return a list of plain texts."""
    return "\n".join(f"- {plain(text)}" for text in texts) + "\n"


def uses() -> dict[str, str]:
    """Return the purpose of each mechanism, from the table of the README."""
    rows = re.findall(r"^\| ([^|`]+) \| (.*`.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {name: want for want, names in rows for name in re.findall(r"`(\w+)`", names)}


USES = uses()


def first_sentence(text: str | None) -> str:
    """Return the first line of a docstring without its period."""
    return (text or "").strip().partition("\n")[0].removesuffix(".")


def settings(config: type, defaults: dict[str, Any]) -> str:
    """Return the table of the settings of a mechanism or task, with the comments beside its fields."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__[:-1]):
        found |= dict(re.findall(r"^\s+(\w+): [^#\n]*#\s*(.*)$", inspect.getsource(cls), re.MULTILINE))
    rows = [(f"`{name}`", f"`{value!r}`", plain(found.get(name, ""))) for name, value in defaults.items()]
    return table(("setting", "default", "meaning"), rows) if rows else "It has no settings.\n"


def mechanism(name: str) -> str:
    """Return the page of a mechanism."""
    card = yaml.safe_load((CARDS / f"{name}.yaml").read_text(encoding="utf-8"))
    row, cls = ROWS[name], MEMORIES[name]
    module = inspect.getmodule(cls)
    first, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n\n")
    paper = re.sub(r"\b(\d{4}\.\d{5})\b", r"[\1](https://arxiv.org/abs/\1)", plain(card["paper"]))
    facts = [
        ("use it for", plain(USES[name])),
        ("paper", paper),
        ("site", row["site"]),
        ("state", plain(card["state"]["kind"])),
        ("state of a stream", f"{row['state_bytes_per_stream']:,} bytes"),
        ("cost of a token", f"{row['flops_per_token'] / 1e6:.2f} MFLOP"),
        ("forgets by", ", ".join(card["forgetting"])),
        ("source", f"[{module.__name__.replace('.', '/')}.py](../api/{module.__name__}.md)"),
    ]
    parity = {key: value for key, value in (card["parity"] | card["golden"]).items() if value and key != "memtx"}
    parity["files"] = ", ".join(parity.get("files", []))
    return "\n".join(
        [
            f"# {name}\n\n{first}\n",
            table(("", ""), facts),
            "The costs are those of the tiny model (4 layers, width 128) at default settings. The bytes of a stream are "
            f"`{card['state']['bytes']}`.\n",
            f"## Settings\n\nSet a value with `--config.memory.{name}.KEY=VALUE`.\n",
            settings(cls.Config, row["settings"]),
            "## Equations\n",
            equations(card["equations"], row["settings"]),
            f"\nDifferentiable: {plain(card['differentiable'])}\n",
            f"## From the source file\n\n{markdown(rest)}\n",
            *_section("Differences from the paper", card["deviations"]),
            *_section("Code of others", card["reference_code"]),
            "## Comparison\n",
            table(("", ""), [(key, plain(value)) for key, value in parity.items() if value]),
            f"## Results\n\nThe paper: {plain(card['claim']['paper'])}\n\nmemtx: {plain(card['claim']['status'])}\n",
            *_section("Negative results", card["negative_results"]),
        ]
    )


def _section(title: str, texts: list[str] | None) -> list[str]:
    return [f"## {title}\n", items(texts)] if texts else []


def tasks() -> str:
    """Return the table of the tasks."""
    rows = []
    for name, cls in TASKS.items():
        module = inspect.getmodule(cls)
        rows.append((f"[`{name}`](api/{module.__name__}.md)", plain(first_sentence(module.__doc__))))
    return table(("task", "an example"), rows)


def modules() -> list[str]:
    """Return the names of the modules that the API reference documents."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "memtx").rglob("*.py")))
    names = [".".join(path.parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if not re.search(r"\.(test_\w+|conftest|__main__)$|^memtx$", name)]


def module_page(name: str) -> str:
    """Return the page of a module."""
    return f"# {name}\n\n::: {name}\n"


def public_names() -> str:
    """Return the first page of the API reference: the public names and the packages."""
    rows = []
    for module, names in memtx._MODULES.items():
        for name in names:
            about = first_sentence(inspect.getdoc(getattr(memtx, name))) if callable(getattr(memtx, name)) else ""
            rows.append((f"[`memtx.{name}`](api-of:{module}.{name})", plain(about)))
    rows.sort(key=lambda row: row[0].lower())
    rows = [(re.sub(r"\(api-of:(.*)\)", r"[\1]", cell), about) for cell, about in rows]
    rooms = []
    for path in sorted((ROOT / "memtx").glob("*/__init__.py")) + sorted((ROOT / "memtx").glob("[a-z]*.py")):
        name = f"memtx.{path.parent.name if path.name == '__init__.py' else path.stem}"
        rooms.append((f"[`{name}`]({name}.md)", plain(first_sentence(ast.get_docstring(ast.parse(path.read_text("utf-8")))))))
    return (
        "# API reference\n\n`import memtx` gives these names. Each is imported from its module when it is first used.\n\n"
        f"{table(('name', ''), rows)}\n## Modules\n\n{table(('module', ''), rooms)}"
    )


def notebook(path: Path) -> str:
    """Return a notebook as a page."""
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = re.sub(r"!\[([^\]]*)\]\(http[^)]*\)", r"\1", "".join(cell["source"]))  # a badge would need a network
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", []):
            said = "".join(output.get("text") or output.get("data", {}).get("text/plain", ""))
            parts += [f"```text\n{said.rstrip()}\n```"] if said else []
    return "\n\n".join(parts) + "\n"
