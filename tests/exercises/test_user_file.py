"""The user's file: it is executed once, and its errors are told with their line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ldm_core.exercises import UserFile, Wrong, exercise, mark
from ldm_core.exercises.user_file import MODULE


def written(folder: Path, source: str, seconds: float = 60) -> UserFile:
    path = folder / "my.py"
    path.write_text(source, encoding="utf-8")
    return UserFile(path, seconds)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\ndef f(:\n", "raises SyntaxError"),
        ("x = 1\ndef f(:\n", "line 2: def f(:"),
        ("x = 1\n\nundefined()\n", "NameError: name 'undefined' is not defined\nline 3: undefined()"),
        ("import sys\nsys.exit(3)\n", "raises SystemExit"),
        ("import no_such_module\n", "ModuleNotFoundError"),
        ("raise ValueError('\\x1b[2J and more')\n", "\\x1b[2J"),
        ("while True:\n    pass\n", "had not finished after 0.2 s"),
    ],
)
def test_a_file_that_does_not_run(source: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(Wrong) as error:
        written(tmp_path, source, seconds=0.2)
    assert words in str(error.value)
    assert "\x1b" not in str(error.value)
    assert MODULE not in sys.modules


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "my.py"
    path.write_bytes(b"x = '\xff\xfe'\n")
    with pytest.raises(Wrong, match="SyntaxError"):
        UserFile(path)
    with pytest.raises(FileNotFoundError):
        UserFile(tmp_path / "none.py")


def test_what_the_file_defines(tmp_path: Path) -> None:
    answer = written(tmp_path, "import math\nnumber = 3\ndef add_nose(): pass\n")
    with pytest.raises(Wrong, match=r"does not define `add_noise`\. Is `add_nose` meant"):
        answer.get("add_noise")
    with pytest.raises(Wrong, match="it defines add_nose"):
        answer.get("PLMS")
    with pytest.raises(Wrong, match="must be a function or a class, not a int"):
        answer.get("number")
    result = mark(exercise(1), answer)
    assert (result.right, result.passed, result.failed) == (False, (), "`add_noise` is there")


def test_the_main_block_does_not_run_and_dataclasses_work(tmp_path: Path) -> None:
    source = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    x: int = 1\n"
        "if __name__ == '__main__':\n    raise SystemExit\n"
    )
    assert written(tmp_path, source).get("A")().x == 1
    assert [path.name for path in tmp_path.iterdir()] == ["my.py"], "no compiled file is left beside it"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(x):\n    return x.add_(1)\n", "changes its argument `x` in place"),
        ("def f(x):\n    x + 1\n", "returns None. Does it lack a `return`?"),
        ("def f(x):\n    y = 1\n    return x[9]\n", "IndexError"),
        ("def f(x):\n    y = 1\n    return x[9]\n", "line 3: return x[9]"),
        ("def f(x):\n    raise NotImplementedError\n", "f(…) is not written yet."),
        ("def f():\n    return 1\n", "TypeError: f() takes 0 positional arguments but 1 was given"),
        ("def f(x):\n    while True: pass\n", "Does a loop never end?\nline 2: while True: pass"),
    ],
)
def test_a_call_that_fails(source: str, words: str, tmp_path: Path) -> None:
    answer = written(tmp_path, source, seconds=0.2)
    with pytest.raises(Wrong) as error:
        answer.call(answer.get("f"), torch.zeros(3))
    assert words in str(error.value)


def test_marking_keeps_the_random_state(tmp_path: Path) -> None:
    answer = written(tmp_path, "import torch\ndef add_noise(x0, *rest): return torch.rand_like(x0)\n")
    before = torch.get_rng_state()
    assert not mark(exercise(1), answer).right
    assert torch.equal(torch.get_rng_state(), before)
