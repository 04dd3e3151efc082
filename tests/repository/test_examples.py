"""Every example runs offline from a folder of its own, and leaves pictures with something in them."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm_core.watch.grid import GAP, MARGIN

FOLDER = Path(__file__).parents[2] / "examples"
NEEDS_DATA = {"train_controlnet", "train_unclip", "train_zoo"}  # run by tests/zoo and tests/prior
EXAMPLES = sorted(path for path in FOLDER.glob("*.py") if path.stem not in NEEDS_DATA)
FEWER_STEPS = ["--steps", "2"]
# What makes an example quick besides few steps.
QUICK = {
    "fine_tune": ["textual-inversion", "--draw-steps", "2", "--batch-size", "2"],
    "img2img": ["--strengths", "0.5", "1.0"],
    "inpainting": ["--seeds", "0"],
    "latent_interpolation": ["--count", "3"],
    "watch_it_happen": ["--columns", "2"],
}
# The pictures of a sheet, (in a row, rows); a pair of pixels where one plain picture is saved.
SHEETS = {
    "similarity.png": (4, 1),
    "attention.png": (3, 1),  # "red apple" has two tokens
    "fine_tune.png": (5, 3),
    "img2img.png": (3, 1),
    "inpainting.png": (3, 1),
    "interpolation.png": (3, 2),
    "preview.png": (8, 2),
    "strip.png": (2, 2),
    "steps.webp": (2, 1),
    "train_tiny.png": (3, 1),
}
# Ten seconds and more. What they call is also called by tests/training, tests/watch and the docs.
SLOW = {"fine_tune", "latent_preview", "plots"}
LINES = {"fine_tune": 150}  # four methods in one
SIZES = {"txt2img.png": (128, 128)}
TILE = 128  # pixels of a picture in a sheet


def run(script: Path, options: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [script.name, *options])
    runpy.run_path(str(script), run_name="__main__")
    return sorted(folder.iterdir())


def contents(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(float)


@pytest.mark.one_in(4)
@pytest.mark.usefixtures("quick_previews")
@pytest.mark.parametrize(
    "script",
    [pytest.param(s, marks=[pytest.mark.slow] if s.stem in SLOW else [], id=s.stem) for s in EXAMPLES],
)
def test_example_draws(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(script, FEWER_STEPS + QUICK.get(script.stem, []), tmp_path, monkeypatch)
    assert made, "an example leaves at least one picture"
    if script.stem.startswith("swapped_"):
        assert made == [tmp_path / f"{script.stem}.png"]
        assert capsys.readouterr().out == f"saved {made[0].name}\n"
        assert len(np.unique(contents(made[0]).reshape(-1, 3), axis=0)) > 1000
    for path in made:
        picture = contents(path)
        height, width = picture.shape[:2]
        if path.name in SIZES:
            assert (width, height) == SIZES[path.name]
        elif path.name in SHEETS:
            columns, rows = SHEETS[path.name]
            pictures = columns * TILE + (columns - 1) * GAP
            assert width - pictures >= 2 * MARGIN
            assert width - pictures <= 2 * MARGIN + 120, "margins, and no more than words beside the rows"
            assert height - rows * TILE >= 2 * MARGIN
            assert height - rows * TILE <= 2 * MARGIN + (rows - 1) * GAP + 80
        assert picture.std() > 10, "more than a plain area"
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_example_is_short_and_says_what_it_shows(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert len(text.splitlines()) < LINES.get(script.stem, 80)


@pytest.mark.slow  # a minute together
@pytest.mark.parametrize("method", ["full", "lora", "dreambooth"])
def test_each_way_of_fine_tuning_leaves_its_sheet(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kept").mkdir()
    options = [method, *FEWER_STEPS, *QUICK["fine_tune"][1:], "--folder", "kept"]
    path, _ = run(EXAMPLES[0].parent / "fine_tune.py", options, tmp_path, monkeypatch)
    assert (tmp_path / "kept" / f"{method}.safetensors").exists()
    picture = contents(path)
    row = TILE + GAP
    before, after = picture[-MARGIN - row - TILE : -MARGIN - row], picture[-MARGIN - TILE : -MARGIN]
    changed = abs(before[:, -MARGIN - 5 * row : -MARGIN] - after[:, -MARGIN - 5 * row : -MARGIN])
    assert changed[:, : 2 * row].max() > 0, "what was learned shows"


def test_several_prompts_become_a_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = EXAMPLES[0].parent / "txt2img.py"
    options = [*FEWER_STEPS, "fire", "panda", "bear", "--seeds", "1", "2", "3", "--columns", "2"]
    (path,) = run(script, options, tmp_path, monkeypatch)
    picture = contents(path)
    assert picture.shape[1] == 2 * MARGIN + 2 * TILE + GAP
    assert picture.shape[0] > 2 * MARGIN + 2 * TILE + GAP
    assert (picture[-MARGIN - TILE :, -MARGIN - TILE :] == 255).all(), "the fourth place stays empty"


def test_words_with_numbers_of_seeds_that_do_not_fit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = EXAMPLES[0].parent / "txt2img.py"
    with pytest.raises(ValueError, match=r"one seed per image \(3\), got 2"):
        run(script, ["fire", "panda", "bear", "--seeds", "1", "2"], tmp_path, monkeypatch)
    assert list(tmp_path.iterdir()) == []


def test_slerp_keeps_the_length_and_meets_its_ends() -> None:
    import torch

    slerp = runpy.run_path(str(EXAMPLES[0].parent / "latent_interpolation.py"))["slerp"]
    a, b = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    middle = slerp(a, b, 0.5)
    # two draws have nearly one length, and the arc between them nearly keeps it; the line would lose 30 %
    assert abs(float(middle.norm() / a.norm()) - 1) < 0.05
    assert float(torch.lerp(a, b, 0.5).norm() / a.norm()) < 0.75
