"""The command line: restoring the faces of photos."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.cli_runs import Run
from support.faces import ASTRONAUT, astronaut

from ldm_core.cli import restoration


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that darkens faces, whatever the file."""

    def load(path: Any, *, device: Any) -> Any:
        if not Path(path).exists():
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return SimpleNamespace(network=lambda x: x * 0.5 - 0.4, kind="gfpgan")

    monkeypatch.setattr(restoration.restoration, "load", load, raising=False)


def restore(run: Run, *options: str) -> Any:
    Path("net.pth").touch()
    return run("restore", *options, "--model", "net.pth", "--device", "cpu")


def test_a_photo_and_its_sheet(run: Run) -> None:
    result = restore(run, str(ASTRONAUT), "-o", "out.png", "--upscale", "2", "--sheet")
    assert (result.status, result.out, result.err) == (0, ["out.png", "out-sheet.png"], [])
    with Image.open("out.png") as out, Image.open("out-sheet.png") as sheet:
        assert out.size == (448, 448)
        assert sheet.size == (896, 448)
        assert np.asarray(out)[220, 220].mean() < np.asarray(astronaut())[110, 110].mean() - 20
    again = restore(run, str(ASTRONAUT), "-o", "out.png")
    assert (again.status, again.out) == (2, [])
    assert again.err == ["ldm-core: error: --output out.png: the file already exists; --force overwrites it"]


def test_a_folder_in_a_folder_out(run: Run) -> None:
    Path("in/more").mkdir(parents=True)
    astronaut().save("in/a.jpg")
    Image.new("RGB", (30, 20)).save("in/more/b.png")
    Path("in/c.png").write_bytes(b"damaged")
    result = restore(run, "in", "-o", "out")
    assert result.status == 2
    assert result.out == ["out/a.png", "out/more/b.png"]
    assert [line for line in result.err if "warning" in line] == [
        "ldm-core: warning: no face was found in the photo, which is returned without restored faces"
    ]
    assert result.err[-1] == "ldm-core: error: 1 of 3 photos were not restored"
    assert any(line.startswith("ldm-core: error: in/c.png: ") for line in result.err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("photo.png", "-o", "out.jpg"), "--output out.jpg: expected a file name that ends in .png"),
        (("photo.png", "-o", "."), "--output .: expected a file name that ends in .png"),
        (("none.png", "-o", "out.png"), "none.png: No such file or directory"),
        (("empty", "-o", "out"), "empty: a folder without pictures"),
        (("photo.png", "-o", "out.png", "--fidelity", "2"), "fidelity must be a number in [0, 1], not 2.0"),
        (("photo.png", "-o", "out.png", "--upscale", "9"), "expected a whole number in 1..8, not '9'"),
        (("photo.png", "-o", "out.png", "--mask", "parsing"), "mask 'parsing' needs a parser"),
        (("photo.png", "-o", "out.png", "--parser", "none.pth"), "none.pth: No such file or directory"),
    ],
)
def test_bad_input(run: Run, options: tuple[str, ...], message: str) -> None:
    Path("empty").mkdir()
    Image.new("RGB", (30, 20)).save("photo.png")
    result = restore(run, *options)
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert message in result.err[0]
    assert not list(Path().glob("out*"))
