"""Hooks of MkDocs that make the pages which are not in docs/.

- The README, CONTRIBUTING, the changelog, the studies, the benchmarks and the notebooks become pages.
- Each mechanism gets a page from its card, its costs and its docstring, and each module a page of the API reference.
- Links between files of the repository become links between pages. Other files are copied to the folder `files`.
"""

from __future__ import annotations

import os
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # the memtx of this checkout, also if another one is installed

import contents  # noqa: E402

TOP = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
TOP["experiments"] = "results.md"
FOLDERS = {"experiments": "studies", "benchmarks": "benchmarks"}
NAMING = ("index.md", "memories.md")  # pages whose tables name mechanisms
NOTEBOOKS = re.findall(r"^\| \[(\w+)\]", (ROOT / "docs/notebooks.md").read_text(encoding="utf-8"), re.MULTILINE)
MARK = "<!-- tasks -->"  # docs/tasks.md has it where its table goes
FENCE = re.compile(r"(^ *```.*?^ *```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\[[^\]]*\])\(([^)\s]+)\)")


def sources() -> dict[str, str]:
    """Return the pages of the site that are Markdown or notebooks elsewhere in the repository: path to page."""
    found = {path: page for path, page in TOP.items() if path.endswith(".md")}
    for folder, pages in FOLDERS.items():
        found |= {f"{path.relative_to(ROOT)}": f"{pages}/{path.parent.name}.md" for path in ROOT.glob(f"{folder}/*/README.md")}
    return found | {f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in ROOT.glob("notebooks/*.ipynb")}


SOURCES = sources()
ORIGINS = {page: path for path, page in SOURCES.items()}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the made pages to the navigation."""
    nav = {title: pages for each in config.nav or [] for title, pages in each.items()}

    def listed(folder: str) -> list[str]:
        return sorted(page for page in SOURCES.values() if page.startswith(f"{folder}/"))

    nav["Memories"].append({"Mechanisms": [{name: f"memories/{name}.md"} for name in contents.ROWS]})
    nav["Notebooks"] += [f"notebooks/{name}.md" for name in NOTEBOOKS]
    nav["Sweeps and results"] += [{"Studies": listed("studies")}, {"Benchmarks": listed("benchmarks")}]
    rooms: dict[str, list] = {}
    for name in contents.modules():
        rooms.setdefault(".".join(name.split(".")[:2]), []).append({name: f"api/{name}.md"})
    api = [each[0] if len(each) == 1 else {room: each} for room, each in rooms.items()]
    config.nav = [*(config.nav or []), {"API": [{"Names": "api/index.md"}, *api]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages."""
    made = {page: (ROOT / path).read_text(encoding="utf-8") for path, page in SOURCES.items() if path.endswith(".md")}
    made |= {page: contents.notebook(ROOT / path) for path, page in SOURCES.items() if path.endswith(".ipynb")}
    made |= {f"memories/{name}.md": contents.mechanism(name) for name in contents.ROWS}
    made |= {f"api/{name}.md": contents.module_page(name) for name in contents.modules()}
    made["api/index.md"] = contents.public_names()
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page of the repository, and the few signs that GitHub and MkDocs read differently."""
    uri = page.file.src_uri
    page.meta["search"] = {"boost": 1 if uri.startswith(("api/", *FOLDERS.values())) else 4}  # explanations come first
    origin = ORIGINS.get(uri, "" if "/" in uri else f"docs/{uri}")
    if not origin:
        return markdown
    markdown = markdown.replace(MARK, contents.tasks()) if MARK in markdown else markdown
    markdown = re.sub(r"^```(\w*) title=(\S+)$", r'```\1 title="\2"', markdown, flags=re.MULTILINE)

    def rewritten(link: re.Match) -> str:
        return f"{link[1]}({target(link[2], origin, uri, config, files)})"

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(rewritten, text) for text in parts[::2]]
    return re.sub(r"^\|.*$", name_links if uri in NAMING else r"\g<0>", "".join(parts), flags=re.MULTILINE)


def name_links(row: re.Match) -> str:
    """Link the names of mechanisms in a row of a table to their pages."""
    return re.sub(rf"`({'|'.join(contents.ROWS)})`", r"[`\1`](memories/\1.md)", row[0])


def target(link: str, origin: str, uri: str, config: MkDocsConfig, files: Files) -> str:
    """Return the link from a page of the site to the target of a link in the repository."""
    path, sign, anchor = link.partition("#")
    if not path or ":" in path:
        return link
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    page = page_of(path)
    if not page and (ROOT / path).is_file():
        page = f"files/{path}"
        if page not in files.src_uris:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    return posixpath.relpath(page, posixpath.dirname(uri) or ".") + sign + anchor if page else link


def page_of(path: str) -> str:
    """Return the page of a file or folder of the repository, or "" if it has none."""
    if path.startswith("docs/") and path.endswith(".md"):
        return path.removeprefix("docs/")
    for each in (path, f"{path}/README.md"):
        if each in SOURCES or each in TOP:
            return SOURCES.get(each) or TOP[each]
    name = os.path.splitext(path)[0].replace("/", ".").removesuffix(".__init__")
    return f"api/{name}.md" if name in contents.modules() else ""
