"""The command line: the recipe in a picture draws the same picture again."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save
from support.cli_runs import SMALL, Draw, Result, Run, bundled_tensors, mask, photo, pixels

from ldm_core.cli import model as model_loading
from ldm_core.loading.load import bundled_model
from ldm_core.recipe import Recipe, read_recipe, source_file, write_png

# The same picture again


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--scheduler", "ddpm", "--negative-prompt", 'blue:\n"green", it\'s'],
        ["--eta", "0.5", "--spacing", "trailing", "--guidance", "2.5", "--guidance-rescale", "0.7"],
        ["--scheduler", "dpm++2m-karras", "--num", "1"],
        ["--scheduler", "euler-a", "--eta", "0.5"],
        ["--scheduler", "pndm-rk", "--clip-skip", "1", "--size", "128x64"],
    ],
)
def test_from_its_own_png(draw: Draw, run: Run, options: list[str]) -> None:
    draw("txt2img", "grinning\ncat 猫", "-o", "a.png", *options)
    result = run("txt2img", "--from", "a.png", "-o", "b.png", "--device", "cpu")
    assert (result.status, result.out, result.err) == (0, ["b.png"], [])
    assert (pixels("a.png") == pixels("b.png")).all()
    assert read_recipe("a.png") == read_recipe("b.png")


@pytest.mark.parametrize("task", ["img2img", "inpaint"])
def test_from_its_own_png_with_pictures(draw: Draw, run: Run, task: str) -> None:
    inputs = ["--image", photo(size=(80, 80))] + (
        ["--mask", mask(size=(80, 80))] if task == "inpaint" else []
    )
    draw(task, "fire", *inputs, "--strength", "0.8", "--size", "64", "-o", "a.png")
    again = run(task, "--from", "a.png", "--trust-paths", "-o", "b.png", "--device", "cpu")
    assert again == Result(0, ["b.png"], [])
    assert (pixels("a.png") == pixels("b.png")).all()
    assert read_recipe("a.png") == read_recipe("b.png")


def test_one_picture_of_a_batch_comes_back_alone(draw: Draw) -> None:
    batch = draw("txt2img", "fire", "panda", *SMALL, "--seed", "7", "--batch-size", "2")
    [alone] = draw("txt2img", "--from", batch[1])
    assert (read_recipe(alone).prompt, read_recipe(alone).seed) == ("panda", 8)
    # Rounding differs with the size of the batch, which may move a value across the border of two levels.
    assert np.abs(pixels(alone) - pixels(batch[1])).max() <= 1


def test_options_override_the_recipe(draw: Draw) -> None:
    draw("txt2img", "fire", *SMALL, "--seed", "4", "--eta", "0.5", "-o", "a.png")
    paths = draw("txt2img", "--from", "a.png", "--guidance", "0", "--num", "2", "--spacing", "linspace")
    first, second = read_recipe(paths[0]), read_recipe(paths[1])
    assert (first.prompt, first.seed, second.seed, first.guidance_scale) == ("fire", 4, 5, 0.0)
    assert first.scheduler_settings["eta"] == 0.5
    assert first.scheduler_settings["spacing"] == "linspace"
    [other] = draw("txt2img", "panda", "--from", "a.png", "--scheduler", "plms", "--seed", "9")
    assert read_recipe(other).prompt == "panda"
    assert (read_recipe(other).scheduler, read_recipe(other).seed) == ("PNDM", 9)


def test_a_changed_source_is_said(draw: Draw, run: Run) -> None:
    draw("img2img", "fire", "--image", photo(), "--strength", "0.5", "-o", "a.png")
    Image.new("RGB", (64, 64)).save("photo.png")
    again = ["img2img", "--from", "a.png", "--trust-paths", "--device", "cpu"]
    result = run(*again, "-o", "b.png")
    assert (result.status, result.out, len(result.err)) == (0, ["b.png"], 1)
    assert re.match(r"ldm-core: warning: a.png was drawn with the image 'photo.png' \(sha256", result.err[0])
    assert run(*again, "-o", "c.png", "-q").err == []
    os.remove("photo.png")
    result = run(*again, "-o", "d.png")
    assert result.status == 2
    assert "not found at 'photo.png': give it with --image" in result.err[0]


def test_a_recipe_without_paths(draw: Draw, run: Run, tmp_path: Path) -> None:
    tensors, metadata = bundled_tensors()
    (tmp_path / "private").mkdir()
    Path("private/mine.safetensors").write_bytes(save(tensors, metadata={**metadata, "note": "another file"}))
    paths = {"--image": photo("private/photo.png"), "--mask": mask("private/mask.png")}
    given = [*itertools.chain(*paths.items()), "--model", "private/mine.safetensors"]
    draw("inpaint", "x", *given, "--no-paths", "-o", "private/a.png")
    draw("inpaint", "x", *given, "-o", "b.png")
    recipe, whole = read_recipe("private/a.png"), read_recipe("b.png")
    files = {"image": "photo.png", "mask": "mask.png", "model": "mine.safetensors"}
    for field, name in files.items():
        assert getattr(recipe, field) == replace(getattr(whole, field), path=None)
        assert getattr(recipe, field).name == name
    assert b"private" in Path("b.png").read_bytes()
    assert b"private" not in Path("private/a.png").read_bytes()
    result = run("inpaint", "--from", "private/a.png", "-o", "c.png")
    assert "names files" in result.err[0]
    assert "--image 'photo.png', --mask 'mask.png'" in result.err[0]
    again = ["inpaint", "--from", "private/a.png", *itertools.chain(*paths.items()), "-o", "c.png"]
    draw(*again)  # the model is found beside the picture
    assert (pixels("c.png") == pixels("private/a.png")).all()


def test_another_model_is_said(draw: Draw, run: Run) -> None:
    tensors, metadata = bundled_tensors()
    model = Path("other.safetensors")
    model.write_bytes(save(tensors, metadata={**metadata, "note": "the same weights in another file"}))
    draw("txt2img", "fire", *SMALL, "-o", "a.png")
    result = run(
        "txt2img", "--from", "a.png", "--model", "other.safetensors", "-o", "b.png", "--device", "cpu"
    )
    assert (result.status, len(result.err)) == (0, 1)
    assert "with the model 'emoji.safetensors'" in result.err[0]
    assert (pixels("a.png") == pixels("b.png")).all()
    assert run("txt2img", "--from", "b.png", "-o", "c.png", "--device", "cpu") == Result(0, ["c.png"], [])
    model.unlink()
    result = run("txt2img", "--from", "b.png", "-o", "d.png")
    assert result.status == 2
    assert "not found at 'other.safetensors': give it with --model" in result.err[0]


def test_a_picture_of_another_program(draw: Draw, run: Run) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters", "panda\nSteps: 2, Sampler: PLMS, CFG scale: 3, Seed: 6, Size: 64x64, Model: v1-5"
    )
    Image.new("RGB", (8, 8)).save("web.png", pnginfo=info)
    result = run("txt2img", "--from", "web.png", "-o", "a.png")
    assert result.status == 2
    assert "drawn with 'v1-5' (sha256 unknown), whose path is not recorded" in result.err[0]
    model = str(bundled_model())
    result = run("txt2img", "--from", "web.png", "--model", model, "-o", "a.png", "--device", "cpu")
    assert (result.status, len(result.err)) == (0, 1)
    assert "drawn by another program" in result.err[0]
    draw("txt2img", "panda", *SMALL, "--scheduler", "plms", "--guidance", "3", "--seed", "6", "-o", "b.png")
    assert (pixels("a.png") == pixels("b.png")).all()

    info.add_text("parameters", "panda\nSteps: 2, Sampler: DPM fast, Seed: 6, Size: 64x64")
    Image.new("RGB", (8, 8)).save("fast.png", pnginfo=info)
    result = run("txt2img", "--from", "fast.png")
    assert result.status == 2
    assert "the unknown sampler 'DPM fast'; choose one with --scheduler" in result.err[0]


def test_the_type_of_the_recipe_is_used_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*_: Any, dtype: Any, **__: Any) -> None:
        asked.append(dtype)
        raise ValueError("seen")

    recipe = Recipe(
        task="txt2img",
        prompt="x",
        seed=1,
        steps=2,
        width=64,
        height=64,
        guidance_scale=4,
        scheduler="DDIM",
        model=source_file(bundled_model(), bundled=True),
        dtype="bfloat16",
        versions={"ldm_core": "0"},
    )
    write_png(Image.new("RGB", (8, 8)), "a.png", recipe)
    monkeypatch.setattr(model_loading, "load", load)
    run("txt2img", "--from", "a.png")
    run("txt2img", "--from", "a.png", "--dtype", "float32")
    assert asked == [torch.bfloat16, torch.float32]
