"""Each notebook runs from top to bottom, in a new process, without a kernel."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
START = """
import pathlib, subprocess, warnings
import matplotlib.pyplot, memtx, optax  # warnings of imports are not the notebook's
warnings.simplefilter("error")
def _shell(command):
    subprocess.run(command, shell=True, check=True)
"""
WRITE, INSTALL = "%%writefile ", "%pip "


def code(cell: str) -> str:
    """Return a cell as Python. `!COMMAND` becomes a call, `%%writefile` writes its cell, and nothing is installed."""
    if cell.startswith(WRITE):
        name, _, text = cell.removeprefix(WRITE).partition("\n")
        return f"pathlib.Path({name!r}).write_text({text!r}, encoding='utf-8')\n"
    lines = []
    for line in cell.splitlines():
        text = line.lstrip()
        space = line.removesuffix(text)
        line = f"{space}pass" if text.startswith(INSTALL) else line
        lines.append(f"{space}_shell({text[1:]!r})" if text.startswith("!") else line)
    return "\n".join(lines) + "\n"


def sources(notebook: Path, kind: str) -> list[str]:
    """Return the cells of a notebook of this kind, "code" or "markdown"."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def test_cells_become_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(START + code("%%writefile a.txt\nhello\n!x\n") + code("if True:\n    !cp a.txt b.txt\n    %pip install memtx"), {})
    assert (tmp_path / "b.txt").read_text() == "hello\n!x\n"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_clean(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    url = f"https://colab.research.google.com/github/memtx/memtx/blob/main/notebooks/{notebook.name}"
    assert f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({url})" in cells[0]["source"][0]
    assert any(line.strip().startswith(f"{INSTALL}install -q") for line in cells[1]["source"])
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), "it has outputs"


def test_the_docs_list_every_notebook():
    page = (Path(__file__).parents[1] / "docs" / "notebooks.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\w+)\]\(\.\./notebooks/\1\.ipynb\)", page, re.MULTILINE)
    assert sorted(listed) == [path.stem for path in NOTEBOOKS]


@pytest.mark.thorough
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path):
    for name, module in (("memtx", "memtx.cli"), ("pytest", "pytest")):  # the commands of this Python
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "notebook.py").write_text(START + "".join(map(code, sources(notebook, "code"))), encoding="utf-8")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "MPLBACKEND": "agg", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "notebook.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
