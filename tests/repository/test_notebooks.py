"""The notebooks of docs/notebooks, in jupytext's percent format: they run from top to bottom."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.py"))
EACH = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
CELL = re.compile(r"^# %%( \[markdown\])?$", re.MULTILINE)


@EACH
def test_it_is_a_notebook(path: Path) -> None:
    """A title first, every cell of text a comment, every cell of code valid alone."""
    text = path.read_text(encoding="utf-8")
    assert re.match(r"# %% \[markdown\]\n# # [A-Z]", text)
    parts = CELL.split(text)[1:]
    for kind, cell in zip(parts[::2], parts[1::2]):
        if kind:
            assert all(line.startswith("#") for line in cell.strip().splitlines())
        else:
            assert ast.parse(cell).body


def test_they_are_seven_in_order() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{k}-" for k in range(1, 8)]


@pytest.mark.slow  # two minutes together; tests of the parts that they call run by default
@EACH
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert runpy.run_path(str(path))
