"""What MkDocs calls while it builds the site: generated pages, pictures, links, formulas, lines of source."""

from __future__ import annotations

import html
import io
import os
import posixpath
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # the modules beside this one, whoever imports it

import mathml
import notebooks
import reference
import source_pages
from links import PAGES, rewritten
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from navigation import expanded
from symbols import ROOT, locate

SOURCES = {place: file for file, place in PAGES.items()}  # page of the site -> file outside docs/
PICTURES = "idea/pictures"
NOTEBOOKS = "notebooks"
# "kept": use the pictures of the repository instead of drawing them, for a quick look at a text.
KEPT = os.environ.get("DOCS_PICTURES") == "kept"

_HEADING = re.compile(
    r'<h(?P<level>[2-4]) id="(?P<path>ldm_core\.[\w.]+)" class="doc doc-heading">(?P<rest>.*?)</h', re.DOTALL
)
_DRAWING = re.compile(r'<img alt="(?P<alt>[^"]*)" src="(?P<src>[^"]*drawings/(?P<name>[\w-]+)\.svg)"\s*/?>')
_DRAWN = re.compile(r'<img [^>]*src="[^"]*pictures/[^"]*"[^>]*>')
_PICTURE = re.compile(r"<img (?![^>]*loading=)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    if "MIKE_DOCS_VERSION" in os.environ:  # built by `mike deploy`: the menu of versions
        config.extra["version"] = {"provider": "mike"}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    def add(place: str, content: str | bytes) -> None:
        if (old := files.get_file_from_path(place)) is not None:
            files.remove(old)
        files.append(File.generated(config, place, content=content))

    for file, place in PAGES.items():
        if file != "README.md" and (ROOT / file).exists():
            add(place, (ROOT / file).read_text(encoding="utf-8"))
    for place, text in reference.pages():
        add(place, text)
    if not KEPT:
        for name, data in pictures().items():
            add(f"{PICTURES}/{name}", data)

    for script in sorted((ROOT / "docs" / NOTEBOOKS).glob("*.py")):
        notebook = read_notebook(script)
        add(f"{NOTEBOOKS}/{script.stem}.md", notebook.markdown)
        for name, data in notebook.pictures.items():
            add(f"{NOTEBOOKS}/pictures/{name}", data)

    linked = {symbol.file for symbol in reference.homes()}
    for file in files.documentation_pages():
        if not _is_reference(file.src_uri):
            rewritten(file.content_string, file.src_uri, _source(file.src_uri), linked.add)
    for source in sorted(linked):
        add(source_pages.url_of(source), source_pages.page(source))
    add(source_pages.STYLE, source_pages.style())
    add(mathml.FONT, mathml.font())

    assert config.nav is not None
    config.nav = expanded(config.nav, [file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    place = page.file.src_uri
    if place == "index.md":
        page.meta["hide"] = ["navigation", "toc"]
    if _is_reference(place):
        return markdown
    return rewritten(markdown, place, _source(place), lambda file: None)


def on_page_content(content: str, page: Page, **_: Any) -> str:
    content = mathml.with_mathml(content)
    content = _DRAWING.sub(_inlined, content)
    content = _DRAWN.sub(r'<span class="drawn">\g<0></span>', content)
    content = _PICTURE.sub('<img loading="lazy" ', content)
    if _is_reference(page.file.src_uri):
        content = _HEADING.sub(lambda match: _with_source(match, page.url), content)
    return content


@cache
def read_notebook(script: Path) -> notebooks.Notebook:
    """A notebook's page, run unless pictures are kept."""
    sys.path.insert(0, str(ROOT))
    try:
        return notebooks.page(script, run=not KEPT)
    finally:
        sys.path.remove(str(ROOT))


@cache
def pictures() -> dict[str, bytes]:
    """The pictures of the idea's pages, drawn by the bundled model: file name -> WebP."""
    sys.path.insert(0, str(ROOT))
    sys.path.insert(0, str(ROOT / "docs" / "idea"))
    try:
        from pictures import draw
    finally:
        del sys.path[:2]
    found = {}
    for name, picture in draw():
        data = io.BytesIO()
        picture.save(data, "WEBP", quality=90)
        found[f"{name}.webp"] = data.getvalue()
    return found


def _is_reference(place: str) -> bool:
    return place.startswith(f"{reference.FOLDER}/")


def _source(place: str) -> str:
    return SOURCES[place] if place in SOURCES and place != "index.md" else f"docs/{place}"


def _inlined(match: re.Match[str]) -> str:
    """A drawing within the page, where its colours are the page's."""
    svg = (ROOT / "docs" / "idea" / "drawings" / f"{match['name']}.svg").read_text(encoding="utf-8")
    words = html.escape(html.unescape(match["alt"]))
    label = f'<svg role="img" data-search-exclude aria-label="{words}" '
    return svg[svg.index("<svg") :].replace("<svg ", label, 1).strip()


def _with_source(match: re.Match[str], url: str) -> str:
    symbol = locate(match["path"])
    if symbol is None:
        return match[0]
    where = f"{source_pages.url_of(symbol.file)}#L{symbol.line}"
    target = posixpath.relpath(where, posixpath.dirname(url) or ".")
    title = f"{symbol.file}, line {symbol.line}"
    link = f'<a class="source" href="{target}" title="{title}">source</a>'
    return match[0][: -len("</h")] + link + "</h"
