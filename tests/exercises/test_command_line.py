"""`python -m ldm_core.exercises`: what it prints, and its exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.exercise_answers import BY_HAND

from ldm_core.exercises import EXERCISES
from ldm_core.exercises.__main__ import main


@pytest.fixture
def answers(tmp_path: Path) -> str:
    """A file that answers exercises 1, 2 and 8, the last one wrongly."""
    wrong = BY_HAND["img2img_start"].replace("round(", "int(")
    path = tmp_path / "my.py"
    path.write_text("\n".join([BY_HAND["forward_process"], BY_HAND["guidance"], wrong]), encoding="utf-8")
    return str(path)


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["list"]):
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert all(row.title in printed and row.defines in printed for row in EXERCISES)
        assert max(map(len, printed.splitlines())) <= 110


def test_stubs(capsys: pytest.CaptureFixture[str]) -> None:
    for row in EXERCISES:
        assert main(["stub", str(row.number)]) == 0
        assert capsys.readouterr().out == row.stub


def test_right_answers(answers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "1", answers]) == 0
    assert "Done. The library's own solution is in ldm_core/noise_schedule.py" in capsys.readouterr().out
    assert main(["check", "1", "2", answers]) == 0
    assert "2 of 2 right" in capsys.readouterr().out


def test_wrong_answers(answers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "8", answers]) == 1
    printed = capsys.readouterr().out
    assert "right  half of 50 steps" in printed
    assert "WRONG  strength 0.29 of 100 steps" in printed
    assert "docs/exercises/08-img2img-start.md" in printed
    assert main(["check", "--all", answers]) == 1
    printed = capsys.readouterr().out
    assert "2 of 12 right" in printed
    assert "does not define `file_key`" in printed
    assert max(map(len, printed.splitlines())) <= 110


def test_the_report_that_the_introduction_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.py"
    path.write_text(BY_HAND["ddim_step"].replace("prev - sigma**2", "prev"), encoding="utf-8")
    assert main(["check", "3", str(path)]) == 1
    page = Path(__file__).parents[2] / "docs" / "exercises" / "README.md"
    assert f"```\n{capsys.readouterr().out.strip()}\n```" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "13", "my.py"], "there is no exercise 13; expected a number from 1 to 12"),
        (["check", "1", "none.py"], "none.py: No such file or directory"),
        (["check", "1", "."], "Is a directory"),
        (["check", "my.py"], "name the exercises to check"),
        (["check", "--all", "1", "my.py"], "name the exercises to check"),
        (["stub", "0"], "there is no exercise 0"),
    ],
)
def test_bad_input(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_control_codes_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my.py"
    path.write_text("def add_noise(*args):\n    raise ValueError('\x1b[31m\u202e')\n", encoding="utf-8")
    assert main(["check", "1", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\u202e" not in printed
    assert "line 2: raise ValueError('\\x1b[31m\\u202e')" in printed
    path.write_text("1 / 0\n", encoding="utf-8")
    assert main(["check", "1", str(path)]) == 1
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().out


@pytest.mark.slow  # imports torch in a process of its own
def test_as_a_process(answers: str) -> None:
    command = [sys.executable, "-m", "ldm_core.exercises", "check", "8", answers]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "")
    assert "Use round()." in run.stdout
