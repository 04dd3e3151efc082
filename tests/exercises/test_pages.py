"""The pages of the exercises: each shows its stub, its time and its solution, and its links lead to files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ldm_core.exercises import EXERCISES, Exercise

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "exercises"


@pytest.mark.parametrize("row", EXERCISES, ids=lambda row: row.name)
def test_a_page_shows_its_stub(row: Exercise) -> None:
    text = (ROOT / row.page).read_text(encoding="utf-8")
    assert text.startswith(f"# {row.number}. {row.title}\n")
    assert f"*About {row.minutes} minutes. You write `{row.defines}`.*" in text
    blocks = re.findall(r"^```py\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks == [row.stub]
    assert f"check {row.number} my.py" in text
    assert (ROOT / row.solution).is_file()
    assert f"](../../{row.solution})" in text


def test_the_introduction_lists_them() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for row in EXERCISES:
        page = Path(row.page).name
        line = f"| [{row.title}]({page}) | `{row.defines}` | {row.minutes} min | {row.source} |"
        assert line in text
    assert len(list(FOLDER.glob("*.md"))) == len(EXERCISES) + 1
    assert [row.number for row in EXERCISES] == list(range(1, 13))
    assert all(10 <= row.minutes <= 60 for row in EXERCISES)
    assert len({row.defines for row in EXERCISES}) == len(EXERCISES), "one file may hold all answers"


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []
