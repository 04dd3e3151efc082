"""The command line: restoring the faces of photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.cli_runs import Run
from support.faces import ASTRONAUT, astronaut

from ldm_core import restoration
from ldm_core.recipe import read_restoration


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that darkens faces, whatever the file."""

    def load(path: Any, *, device: Any) -> Any:
        if not Path(path).exists():
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return SimpleNamespace(network=lambda x, seed=0: x * 0.5 - 0.4 + seed % 7 / 7, kind="gfpgan")

    monkeypatch.setattr(restoration, "load", load, raising=False)


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
        (
            ("photo.png", "-o", "out.png", "--fidelity", "2"),
            "fidelity must be a number in [0, 1] or nothing, not 2.0",
        ),
        (("photo.png", "-o", "out.png", "--upscale", "9"), "expected a whole number in 1..8, not '9'"),
        (("photo.png", "-o", "out.png", "--mask", "parsing"), "mask 'parsing' needs a parser"),
        (("photo.png", "-o", "out.png", "--parser", "none.pth"), "none.pth: No such file or directory"),
        (
            ("photo.png", "-o", "out.png", "--seed", "any"),
            "expected a whole number in 0..999999999, not 'any'",
        ),
        (("photo.png", "-o", "out.png", "--alignment", "own"), "invalid choice: 'own'"),
        (("photo.png", "-o", "out.png", "--from", "photo.png"), "without the recipe of a restored photo"),
    ],
)
def test_bad_input(run: Run, options: tuple[str, ...], message: str) -> None:
    Path("empty").mkdir()
    Image.new("RGB", (30, 20)).save("photo.png")
    result = restore(run, *options)
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert message in result.err[0]
    assert not list(Path().glob("out*"))


def test_a_network_or_a_photo_is_missing(run: Run) -> None:
    Image.new("RGB", (30, 20)).save("photo.png")
    for options in (("photo.png",), ("--model", "net.pth")):
        result = run("restore", *options, "-o", "out.png")
        assert "restore needs a photo or a folder and --model FILE, or --from FILE.png" in result.err[0]


def test_from_its_own_png(run: Run) -> None:
    """The same options in the same picture; what is given overrides the recipe."""
    astronaut().save("photo.png")
    options = ("--seed", "3", "--upscale", "2", "--background", "bilinear", "--alignment", "gpen")
    more = ("--threshold", "0.5", "--fidelity", "0.25", "--no-keep-grey")
    assert restore(run, "photo.png", "-o", "a.png", *options, *more).status == 0
    recipe = read_restoration("a.png")
    assert (recipe.seed, recipe.upscale, recipe.fidelity, recipe.keep_grey) == (3, 2, 0.25, False)
    assert (recipe.photo.name, recipe.model.name, recipe.mask) == ("photo.png", "net.pth", "square")
    again = run("restore", "--from", "a.png", "--trust-paths", "-o", "b.png", "--device", "cpu")
    assert (again.status, again.out, again.err) == (0, ["b.png"], [])
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    run("restore", "photo.png", "--from", "a.png", "-o", "c.png", "--device", "cpu", "--seed", "5")
    assert read_restoration("c.png") == replace(recipe, seed=5)
    assert not np.array_equal(*(np.asarray(Image.open(name)) for name in ("a.png", "c.png")))


def test_a_random_seed_is_recorded(run: Run) -> None:
    for name in ("a.png", "b.png"):
        restore(run, str(ASTRONAUT), "-o", name, "--seed", "random")
    first, second = (read_restoration(name).seed for name in ("a.png", "b.png"))
    assert first != second
    restore(run, str(ASTRONAUT), "-o", "c.png", "--seed", str(first))
    assert Path("c.png").read_bytes() == Path("a.png").read_bytes()


def test_a_recipe_does_not_choose_what_is_read(run: Run) -> None:
    photo = str(ASTRONAUT)
    restore(run, photo, "-o", "a.png")
    refused = run("restore", "--from", "a.png", "-o", "b.png")
    assert refused.status == 2
    assert "names files that are read only with --trust-paths, or if given as options: FILE" in refused.err[0]
    given = run("restore", photo, "--from", "a.png", "-o", "b.png", "--device", "cpu")
    assert (given.status, given.err) == (0, [])
    bare = restore(run, photo, "-o", "bare.png", "--no-paths")
    assert bare.status == 0
    recipe = read_restoration("bare.png")
    assert (recipe.photo.path, recipe.model.path, recipe.photo.name) == (None, None, ASTRONAUT.name)


def test_another_file_is_named(run: Run) -> None:
    restore(run, str(ASTRONAUT), "-o", "a.png")
    Path("net.pth").write_bytes(b"changed")
    astronaut().rotate(2).save("other.png")
    result = run("restore", "other.png", "--from", "a.png", "-o", "b.png", "--device", "cpu")
    assert result.status == 0
    assert [line.split(" (")[0] for line in result.err] == [
        f"ldm-core: warning: a.png was restored with the photo {ASTRONAUT.name!r}",
        "ldm-core: warning: a.png was restored with the model 'net.pth'",
    ]


def test_a_drawing_is_no_restored_photo_and_inspect_shows_both(run: Run) -> None:
    restore(run, str(ASTRONAUT), "-o", "a.png")
    text = run("inspect", "a.png").out
    assert text[1].startswith("model       'net.pth' (sha256 ")
    assert "fidelity" not in "".join(text)
    assert '"task": "restore"' in run("inspect", "a.png", "--json").out[0]
    drawn = run("txt2img", "--from", "a.png", "-o", "b.png")
    assert drawn.err == ["ldm-core: error: a.png: the recipe of a restored photo, not of a drawing"]


def test_grey_photos(run: Run) -> None:
    astronaut().convert("L").save("grey.png")
    restore(run, "grey.png", "-o", "a.png", "--keep-grey")
    restore(run, "grey.png", "-o", "b.png", "--no-keep-grey")
    assert [Image.open(name).mode for name in ("a.png", "b.png")] == ["L", "RGB"]
