"""docs/equations.md: every equation of the four papers once, with the function that cites and computes it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs" / "hooks"))
try:
    from symbols import symbols_of
finally:
    sys.path.pop(0)

PAGE = ROOT / "docs" / "equations.md"
ROW = re.compile(
    r"^\| (?P<name>(?P<paper>LDM|DDPM|DDIM|CFG) [^|]+?) \| (?P<place>[^|]+?) \| (?P<formula>[^|]+) \|$",
    re.MULTILINE,
)
LINK = re.compile(r"\[`(?P<text>[^`]+)`\]\(\.\./(?P<file>[^)#]+)#(?P<symbol>[^)]+)\)")
PAPERS = {"LDM": "2112.10752", "DDPM": "2006.11239", "DDIM": "2010.02502", "CFG": "2207.12598"}
EXPECTED = [
    *("LDM 3.1, encoder", "LDM 3.1, decoder", "LDM (1)", "LDM (2)", "LDM 3.3, attention", "LDM (3)"),
    *(f"DDPM ({n})" for n in range(2, 17)),
    *("DDIM (12)", "DDIM (16)", "CFG (6)"),
]
ROWS = list(ROW.finditer(PAGE.read_text(encoding="utf-8")))
COMPUTED = [row for row in ROWS if not row["place"].startswith("not computed: ")]


def cited(docstring: str) -> set[str]:
    """The numbers of the equations, and the sections, that a docstring names."""
    found: set[str] = set()
    for numbers in re.findall(r"[Ee]quations? (\d+(?:(?:, | and | to )\d+)*)", docstring):
        found |= set(re.findall(r"\d+", numbers))
    return found | set(re.findall(r"section (\d\.\d)", docstring))


def test_every_equation_has_one_row() -> None:
    assert [row["name"] for row in ROWS] == EXPECTED


@pytest.mark.parametrize("row", COMPUTED, ids=lambda row: row["name"])
def test_the_function_cites_the_equation(row: re.Match[str]) -> None:
    link = LINK.search(row["place"])
    assert link is not None, "a row says where, or begins with 'not computed: '"
    symbols = symbols_of(link["file"])
    symbol = symbols[link["symbol"]]
    assert link["text"] == link["symbol"]
    number = re.search(r"\((\d+)\)|(\d\.\d)", row["name"])
    assert number is not None
    assert (number[1] or number[2]) in cited(symbol.docstring or "")
    papers = (symbol.docstring or "") + (symbols[""].docstring or "")
    assert f"arXiv:{PAPERS[row['paper']]}" in papers


def test_what_is_not_computed_links_to_nothing() -> None:
    others = [row for row in ROWS if row not in COMPUTED]
    assert len(others) == 9
    assert not any(LINK.search(row["place"]) for row in others)
