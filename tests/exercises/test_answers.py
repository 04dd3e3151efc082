"""Right answers pass, and wrong ones fail with the right words."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.exercise_answers import BY_HAND, LIBRARY, WRONG

from ldm_core.exercises import EXERCISES, Exercise, Mark, UserFile, mark

BY_NAME = {row.name: row for row in EXERCISES}


def marked(source: str, exercise: Exercise, folder: Path) -> Mark:
    path = folder / "my.py"
    path.write_text(source, encoding="utf-8")
    return mark(exercise, UserFile(path))


@pytest.mark.parametrize("name", BY_NAME)
def test_the_library_is_the_solution(name: str, tmp_path: Path) -> None:
    result = marked(LIBRARY[name], BY_NAME[name], tmp_path)
    assert result.right, result.wrong


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", BY_NAME)
def test_an_answer_by_hand_is_right(name: str, tmp_path: Path) -> None:
    result = marked(BY_HAND[name], BY_NAME[name], tmp_path)
    assert result.right, result.wrong


@pytest.mark.parametrize("name", BY_NAME)
def test_the_stub_is_not_written_yet(name: str, tmp_path: Path) -> None:
    result = marked(BY_NAME[name].stub, BY_NAME[name], tmp_path)
    assert result.wrong is not None
    assert "is not written yet" in result.wrong


@pytest.mark.parametrize(("name", "old", "new", "words"), WRONG)
def test_a_wrong_answer_is_recognised(name: str, old: str, new: str, words: str, tmp_path: Path) -> None:
    assert old in BY_HAND[name]
    result = marked(BY_HAND[name].replace(old, new), BY_NAME[name], tmp_path)
    assert result.wrong is not None, "the wrong answer passes"
    assert words in result.wrong
