"""The site: its navigation has every page of docs/, its FAQ quotes errors that exist, and it builds without dead links."""

import ast
import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
import yaml

import memtx

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "memtx/memory/cards"
MADE = {"index.md", "contributing.md", "changelog.md"}  # from the README and its neighbours


def pages(nav: object) -> list[str]:
    """The pages of a navigation."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


def test_the_navigation_has_every_page():
    found = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(found) == sorted(MADE | {path.name for path in (ROOT / "docs").glob("*.md")})


def test_the_faq_quotes_errors_of_memtx():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in Path(memtx.__file__).parent.rglob("*.py")]
    texts = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    said = "\n".join(text for text in texts if isinstance(text, str))
    quoted = re.findall(r"^### `(.+)`$", (ROOT / "docs/faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 10
    assert not [error for error in quoted if error not in said]


def load_equations():
    """The function that converts the equations of a card."""
    spec = importlib.util.spec_from_file_location("site_equations", ROOT / "docs/site/equations.py")
    module = sys.modules["site_equations"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.equations


def test_equations_are_mathematics():
    shown = load_equations()("y_t = Wo q'^T   over the bank of `memory` tokens")
    left = "<math><mrow><msub><mi>y</mi><mrow><mi>t</mi></mrow></msub></mrow></math>"
    right = (
        '<math><mrow><mo form="infix" lspace="0">=</mo><msub><mi>W</mi><mrow><mi>o</mi></mrow></msub><mspace width="0.2em"/>'
        "<msup><mrow><mi>q</mi><mtext>′</mtext></mrow><mrow><mo>⊤</mo></mrow></msup></mrow></math>"
    )
    words = "\N{EM SPACE}over the bank of <code>memory</code> tokens"
    assert shown == f'<div class="equations">\n<p>{left} {right}{words}</p>\n</div>'


def letters(text: str) -> str:
    """A text without spaces, brackets and the marks of indices and powers, and with the signs that equations show."""
    for sign, shown in {" (x) ": "⊗", " (.) ": "⊙", "<-": "←", "->": "→", "<=": "≤", "...": "…", "..": "…"}.items():
        text = text.replace(sign, shown)
    names = {"sum": "∑", "sqrt": "", "alpha": "α", "beta": "β", "gamma": "γ", "eta": "η", "theta": "θ", "lam": "λ", "nu": "ν"}
    for name, shown in (names | {"phi": "φ", "tau": "τ"}).items():
        text = re.sub(rf"(?<![A-Za-z]){name}(?![A-Za-z~])", shown, text)
    return re.sub(r"[\s_^(){}\[\]<>⟨⟩`]", "", text).translate(str.maketrans("∼′−·⊤", "~'-*T"))


@pytest.mark.parametrize("path", sorted(CARDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_equations_of_a_card_lose_nothing(path):
    text = yaml.safe_load(path.read_text(encoding="utf-8"))["equations"]
    shown = "".join(ElementTree.fromstring(load_equations()(text)).itertext())
    assert letters(shown) == letters(text)


def test_the_readme_says_when_to_use_each_mechanism():
    rows = re.findall(r"^\| [^|`]+ \| .*`.*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(named) == sorted(set(memtx.MEMORIES) - set(memtx.MEMORIES.origins))


def test_the_citation_has_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == memtx.__version__


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, str]:
    """The pages of the site with their HTML. Warnings are errors."""
    pytest.importorskip("mkdocs", reason="needs pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: path.read_text(encoding="utf-8") for path in folder.rglob("*.html")}


def dead_links(site: dict[Path, str]) -> list[str]:
    """The links inside the site that lead to no file or to no anchor."""
    anchors = {path: {*re.findall(r'\bid="([^"]+)"', text)} for path, text in site.items()}
    dead = []
    for path, text in site.items():
        for link in sorted({html.unescape(link) for link in re.findall(r'(?:href|src)="([^"]*)"', text)}):
            target, _, anchor = link.partition("#")
            if ":" in target or target.startswith("/"):  # 404.html has absolute links
                continue
            end = Path(os.path.normpath(path.parent / unquote(target))) if target else path
            if not end.exists() or (anchor and end in anchors and unquote(anchor) not in anchors[end]):
                dead.append(f"{path.name} -> {link}")
    return dead


def test_dead_links_would_be_found(tmp_path):
    page = tmp_path / "a.html"
    page.write_text('<p id="here"><a href="#here"><a href="a.html#there"><img src="b.png"><a href="https://x.y">')
    assert dead_links({page: page.read_text()}) == ["a.html -> a.html#there", "a.html -> b.png"]


@pytest.mark.thorough
def test_links_of_the_site_lead_to_pages_and_anchors(site):
    assert len(site) > 200
    assert not dead_links(site)


@pytest.mark.thorough
def test_pages_of_the_site_load_nothing_from_a_network(site):
    loads = re.compile(
        r'<(?:img|script|iframe|source)\b[^>]*\bsrc="?http|<link\b[^>]*\brel="?(?:stylesheet|preconnect)[^>]*http'
    )
    assert not [path.name for path, text in site.items() if loads.search(text)]


@pytest.mark.thorough
def test_a_page_of_a_mechanism_has_its_card(site):
    [text] = [text for path, text in site.items() if (path.parent.name, path.name) == ("memories", "xl.html")]
    assert text.count("<math>") > 5
    assert "a longer reach at a fixed cost per token" in text
    assert "https://arxiv.org/abs/1901.02860" in text
    assert "api/memtx.memory.xl.html" in text


@pytest.mark.thorough
def test_pages_of_mechanisms_give_the_meaning_of_every_setting(site):
    row = re.compile(r"<td><code>(\w+)</code></td>\s*<td><code>[^<]*</code></td>\s*<td>([^<]*)")
    found = {path.stem: row.findall(text) for path, text in site.items() if path.parent.name == "memories"}
    assert sum(len(settings) for settings in found.values()) > 100
    assert not {name: key for name, settings in found.items() for key, meaning in settings if not meaning.strip()}
