"""The site: its menu, drawings and docstrings; where MkDocs is installed, that it builds without warnings."""

from __future__ import annotations

import io
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "hooks"))
try:
    import notebooks
    from navigation import expanded, pages_of
    from symbols import Symbol, locate, members, public_modules, public_names
finally:
    sys.path.pop(0)

# Pages that the build makes of files outside docs/ and of docstrings.
GENERATED = ("reference/", "models/", "changelog.md", "contributing.md", "security-policy.md")


def written() -> list[str]:
    return [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]


def test_every_page_is_in_the_menu_once() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = pages_of(expanded(nav, written()))
    assert sorted(pages) == sorted(written())


def test_the_menu_names_no_page_that_nobody_writes() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = [page for page in pages_of(nav) if "*" not in page and not page.startswith(GENERATED)]
    assert set(named) <= set(written())


def test_patterns_stand_for_the_pages_that_no_entry_names() -> None:
    nav = ["b.md", "*.md", {"A": "a-*.md"}, {"Deep": "deep/*.md"}, {"Gone": "gone.md"}, {"One": ["a.md"]}]
    found = expanded(nav, ["a.md", "b.md", "c.md", "a-1.md", "deep/z.md", "deep/README.md", "deep/a.md"])
    assert found[:2] == ["b.md", "c.md"]
    deep = ["deep/README.md", "deep/a.md", "deep/z.md"]
    assert found[2:] == [{"A": ["a-1.md"]}, {"Deep": deep}, {"One": ["a.md"]}]
    assert expanded([{"None": "none/*.md"}], ["a.md"]) == []


def test_drawings_are_current() -> None:
    drawings = runpy.run_path(str(DOCS / "idea" / "drawings.py"))
    kept = {
        path.stem: path.read_text(encoding="utf-8") for path in (DOCS / "idea" / "drawings").glob("*.svg")
    }
    assert kept == {name: draw().svg() for name, draw in drawings["DRAWINGS"].items()}


def test_each_step_has_its_parts() -> None:
    pages = sorted((DOCS / "idea").glob("[1-8]-*.md"))
    assert len(pages) == 8
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert re.search(r"!\[[^\]]+\]\(drawings/", text)
        assert re.search(r"!\[[^\]]+\]\(pictures/", text)
        assert "\n## Run it\n" in text
        assert "\n## The file\n" in text
        assert "\n## The equation\n" in text
        assert text.count("$$") >= 2
        assert "arXiv:" in text


SCRIPT = """# %% [markdown]
# # A title
#
# A line with `code`.

# %%
from PIL import Image
print("red")
Image.new("RGB", (8, 8), "red")

# %%
1 + 1
x = 3

# %%
[x, x]
"""


@pytest.mark.parametrize("run", [True, False])
def test_a_notebook_shows_what_its_cells_show(run: bool, tmp_path: Path) -> None:
    script = tmp_path / "1-red.py"
    script.write_text(SCRIPT, encoding="utf-8")
    page = notebooks.page(script, run)
    assert page.markdown.startswith("# A title\n\nA line with `code`.\n\n```py\nfrom PIL import Image\n")
    assert ("```text\nred\n```\n\n![What the cell shows](pictures/1-red-1.webp)" in page.markdown) is run
    assert page.markdown.endswith("```py\n[x, x]\n```\n" + "\n```text\n[3, 3]\n```\n" * run)
    assert list(page.pictures) == ["1-red-1.webp"] * run
    assert Path.cwd() != tmp_path


def public_symbols() -> Iterator[tuple[str, Symbol]]:
    """Every public name of `ldm_core` and its public modules, and the methods of the classes."""
    for module in ("ldm_core", *(f"ldm_core.{name}" for name in public_modules())):
        for name in public_names(module):
            for path in (name, *members(name)):
                symbol = locate(path)
                assert symbol is not None, f"{path} is exported, but nothing defines it"
                yield path, symbol


def test_every_public_name_has_a_docstring() -> None:
    missing = {
        path for path, symbol in public_symbols() if symbol.kind != "constant" and not symbol.docstring
    }
    assert sorted(missing) == []


def test_names_are_found_where_they_are_defined() -> None:
    known = {
        "ldm_core.Sampler": ("ldm_core/sampler.py", "class"),
        "ldm_core.schedulers.DDIM.step": ("ldm_core/schedulers/ddim.py", "function"),
        "ldm_core.checkpoint.inspect": ("ldm_core/loading/doctor.py", "function"),
        "ldm_core.config.PRESETS": ("ldm_core/config.py", "constant"),
        "ldm_core.training": ("ldm_core/training/__init__.py", "module"),
    }
    for path, expected in known.items():
        symbol = locate(path)
        assert symbol is not None
        assert (symbol.file, symbol.kind) == expected
        line = (ROOT / symbol.file).read_text(encoding="utf-8").splitlines()[symbol.line - 1]
        assert symbol.kind == "module" or symbol.name.split(".")[-1] in line
    assert locate("ldm_core.none") is None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site, with the pictures of the repository."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "DOCS_PICTURES": "kept", "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


class Page(HTMLParser):
    """What a page of the site links to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        fetched = found.get("src") or (found.get("href") if tag == "link" else None)
        if fetched:
            self.fetched.append(fetched)


@pytest.mark.slow  # a minute
def test_no_link_of_the_site_is_broken_and_nothing_is_fetched(site: Path) -> None:
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(pages) > 300
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links begin at the root of a server
        assert not [url for url in page.fetched if "://" in url or url.startswith("//")], path
        for link in page.links + page.fetched:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchors = pages[target].anchors if target in pages else {""}
            if not target.is_file() or (target in pages and unquote(parts.fragment) not in anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


@pytest.mark.slow  # the same minute
def test_the_site_has_formulas_drawings_and_lines_of_source(site: Path) -> None:
    step = (site / "idea" / "8-guidance.html").read_text(encoding="utf-8")
    assert step.count("<math") > 5
    assert '<svg role="img" data-search-exclude aria-label="Arrows' in step
    assert "arithmatex" not in step
    schedulers = (site / "reference" / "schedulers.html").read_text(encoding="utf-8")
    symbol = locate("ldm_core.schedulers.DDIM")
    assert symbol is not None
    assert f'href="../source/ldm_core/schedulers/ddim.py.html#L{symbol.line}"' in schedulers
    equations = (site / "equations.html").read_text(encoding="utf-8")
    update = locate("ldm_core.schedulers.ddim.ddim_update")
    assert update is not None
    assert f"</a>:{update.line}" in equations
    for path in (site / "reference").glob("*.html"):
        assert "ldm_core" in path.read_text(encoding="utf-8")


@pytest.mark.slow  # half a minute
def test_pictures_of_the_steps_are_those_that_the_model_draws() -> None:
    np = pytest.importorskip("numpy")
    pytest.importorskip("matplotlib")
    from PIL import Image

    def values(file: Any) -> Any:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB")).astype(float)

    pictures = runpy.run_path(str(DOCS / "idea" / "pictures.py"))
    kept = {path.stem: path for path in pictures["FOLDER"].glob("*.webp")}
    drawn = dict(pictures["draw"]())
    assert set(drawn) == set(kept)
    for name, picture in drawn.items():
        data = io.BytesIO()
        picture.save(data, "WEBP", quality=90)
        before, after = values(kept[name]), values(data)
        assert before.shape == after.shape
        assert abs(before - after).mean() < 2, name  # of 255
