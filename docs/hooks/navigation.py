"""The menu: patterns in `nav` become the pages that match; entries of pages that are not there vanish."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any


def expanded(nav: list[Any], pages: Iterable[str]) -> list[Any]:
    """`nav` of mkdocs.yml with every pattern replaced by the pages (paths from docs/ on) that match it.

    A page that stands in `nav` by its name is not what a pattern stands for.
    """
    named = set(pages_of(nav))
    return _expanded(nav, sorted(pages), named)


def _expanded(nav: list[Any], known: list[str], named: set[str]) -> list[Any]:
    found: list[Any] = []
    for entry in nav:
        if isinstance(entry, str):
            found += _matching(entry, known, named)
            continue
        ((title, inner),) = entry.items()
        if isinstance(inner, str) and "*" not in inner:
            found += [entry] if inner in known else []
            continue
        if isinstance(inner, str):
            inside: list[Any] = _matching(inner, known, named)
        else:
            inside = _expanded(inner, known, named)
        if inside:
            found.append({title: inside})
    return found


def pages_of(nav: list[Any]) -> list[str]:
    """The pages of an expanded navigation, in order."""
    found: list[str] = []
    for entry in nav:
        inner = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += [inner] if isinstance(inner, str) else pages_of(inner)
    return found


def _matching(pattern: str, known: list[str], named: set[str]) -> list[str]:
    if "*" not in pattern:
        return [pattern] if pattern in known else []
    depth = pattern.count("/")  # fnmatch's * would match a / too
    found = [
        page for page in known if page.count("/") == depth and fnmatch(page, pattern) and page not in named
    ]
    return sorted(found, key=lambda page: (not page.endswith("index.md"), page))
