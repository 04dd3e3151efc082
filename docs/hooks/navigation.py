"""The menu: patterns in `nav` become the pages that match; entries of pages that are not there vanish."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any

INDEX = ("index.md", "README.md")


def expanded(nav: list[Any], pages: Iterable[str]) -> list[Any]:
    """`nav` of mkdocs.yml with every pattern replaced by the pages (paths from docs/ on) that match it.

    A page stands where its own name is, or else where the longest pattern is that matches it.
    """
    entries = pages_of(nav)
    found: dict[str, list[str]] = {entry: [] for entry in entries}
    for page in sorted(pages, key=lambda page: (not page.endswith(INDEX), page)):
        matching = [entry for entry in entries if entry == page or _matches(page, entry)]
        if matching:
            found[max(matching, key=lambda entry: (entry == page, len(entry)))].append(page)
    return _filled(nav, found)


def pages_of(nav: list[Any]) -> list[str]:
    """The pages and patterns of a navigation, in order."""
    found: list[str] = []
    for entry in nav:
        inner = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += [inner] if isinstance(inner, str) else pages_of(inner)
    return found


def _matches(page: str, pattern: str) -> bool:
    # fnmatch's * would match a / too.
    return "*" in pattern and page.count("/") == pattern.count("/") and fnmatch(page, pattern)


def _filled(nav: list[Any], found: dict[str, list[str]]) -> list[Any]:
    filled: list[Any] = []
    for entry in nav:
        if isinstance(entry, str):
            filled += found[entry]
            continue
        ((title, inner),) = entry.items()
        if isinstance(inner, str):
            inside: list[Any] = found[inner]
            if inside == [inner]:
                filled.append(entry)
                continue
        else:
            inside = _filled(inner, found)
        if inside:
            filled.append({title: inside})
    return filled
