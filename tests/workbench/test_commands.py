"""The workbench's commands: what they write, and what they refuse."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import cli_runs
from support.cli_runs import Run, photo, pixels, run
from support.controls import write_ip_adapter
from support.tiny_clip import tiny_clip

import ldm_core
from ldm_core.recipe import SourceFile, file_sha256, read_recipe, source_file
from ldm_core.workbench import Grid, Picture
from ldm_core.workbench.plan import fitted

__all__ = ["run"]


@pytest.fixture(scope="module")
def model(tiny: ldm_core.LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the tiny model."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    ldm_core.save(tiny, path)
    cli_runs.zoo[str(path)] = None  # read once
    return str(path)


@pytest.fixture
def drawn(run: Run, model: str, grid: Grid) -> str:
    """The file of the first two pictures of the grid, in the current folder, as `imagine` writes it."""
    fields = {"model": source_file(model), "device": "cpu", "dtype": "float32"}
    two = [replace(one, recipe=replace(one.recipe, **fields)) for one in grid.pictures[:2]]
    Grid(tuple(two)).save("imagine-0001.png")
    return "imagine-0001.png"


def test_imagine_writes_the_grid_of_the_library(run: Run, grid: Grid, model: str) -> None:
    options = ["--model", model, "--steps", "1", "--guidance", "3", "--count", "2", "--device", "cpu"]
    result = run("imagine", "a cat --ar 3:2 --no dog --seed 7", *options)
    assert (result.status, result.err, result.out) == (0, [], ["imagine-0001.png"])
    found = Grid.open("imagine-0001.png")
    pairs = zip(found.images, grid.images)
    assert max(abs(pixels_of(a) - pixels_of(b)).max() for a, b in pairs) <= 1
    recipe = found.pick(2).recipe
    assert recipe.model == SourceFile("tiny.safetensors", file_sha256(model), model)
    assert (recipe.prompt, recipe.negative_prompt, recipe.seed, recipe.device) == ("a cat", "dog", 8, "cpu")
    assert (recipe.width, recipe.height, recipe.steps, recipe.guidance_scale) == (36, 24, 1, 3)


def pixels_of(image: Image.Image) -> Any:
    return np.asarray(image).astype(int)


def test_one_goes_on_from_a_picture_of_the_newest_grid(run: Run, drawn: str) -> None:
    result = run("vary", "2", "--weak", "--seed", "5", "--count", "1")
    assert (result.status, result.err, result.out) == (0, [], ["vary-0001.png"])
    varied = Picture.open("vary-0001.png")
    assert varied.noises.mixtures == (((8, 1.0), (5, 0.1)),)
    assert (varied.recipe.steps, varied.recipe.guidance_scale) == (1, 3)
    assert run("pan", "left", "1", drawn, "--count", "1", "-o", "wide.png").out == ["wide.png"]
    assert Picture.open("wide.png").image.size == (52, 24)
    wide = run("zoom-out", "wide.png", "--count", "2", "--separate", "--steps", "2")
    assert wide.out == ["zoom-out-0001.png", "zoom-out-0001-1.png", "zoom-out-0001-2.png"]
    assert (read_recipe("zoom-out-0001-2.png").steps, Picture.open("wide.png").recipe.steps) == (2, 1)
    assert Grid.open("zoom-out-0001.png").images[1].tobytes() == Image.open("zoom-out-0001-2.png").tobytes()


def test_upscale_takes_a_picture_of_a_grid(run: Run, drawn: str) -> None:
    assert run("upscale", "2", drawn, "--strength", "0.5").out == ["upscale-0001.png"]
    large = Picture.open("upscale-0001.png")
    assert (large.image.size, large.recipe.seed) == ((72, 48), 8)
    assert (
        run("upscale", "upscale-0001.png", "--scale", "1", "--windows", "24", "-o", "again.png").status == 0
    )
    assert Picture.open("again.png").image.size == (72, 48)


def test_imagine_from_a_picture_draws_its_grid_again(run: Run, drawn: str) -> None:
    again = run("imagine", "--from", drawn, "--count", "2", "-o", "again.png")
    assert (again.status, again.err) == (0, [])
    assert (pixels("again.png") == pixels(drawn)).all()


def test_blend_and_pictures_in_prompts(run: Run, drawn: str, model: str) -> None:
    options = ["--model", model, "--steps", "1", "--count", "1"]
    photo("b.png", (36, 24))
    assert run("upscale", "1", drawn, "--scale", "1", "-o", "a.png").status == 0
    result = run("blend", "a.png", "b.png", "--prompt", "--ar 3:2 --seed 1", "--weights", "2", "1", *options)
    assert (result.status, result.out) == (0, ["blend-0001.png"])
    assert read_recipe("blend-0001.png").prompt == "a cat"
    result = run("imagine", "a --iw 1 --seed 1", "--image", "b.png", *options, "--no-paths")
    assert (result.status, read_recipe(result.out[0]).model.path) == (0, None)


@pytest.mark.slow
def test_an_ip_adapter_takes_the_pictures_of_prompts_and_blends(
    run: Run, tiny: ldm_core.LatentDiffusion
) -> None:
    """`--iw` is the scale of the image prompt; without one, it is 1."""
    pictures = [Image.open(photo(name, size)) for name, size in (("a.png", (32, 32)), ("b.png", (40, 24)))]
    ldm_core.save(tiny, "model.safetensors")
    tiny_clip().save("clip.safetensors")
    adapter = [
        "--ip-adapter",
        write_ip_adapter(tiny, 16, Path("ip.safetensors")),
        "--clip",
        "clip.safetensors",
    ]
    options = [*adapter, "--model", "model.safetensors", "--steps", "1", "--guidance", "3", "--count", "1"]
    found = {
        name: Picture.open(run(*command, *options, "--device", "cpu", "-o", f"{name}.png").out[0])
        for name, command in {
            "weak": ["imagine", "a cat --seed 1 --iw 0.5", "--image", "b.png"],
            "strong": ["imagine", "a cat --seed 1", "--image", "b.png"],
            "blend": ["blend", "a.png", "b.png", "--prompt", "a cat --seed 1 --iw 0.5"],
        }.items()
    }
    model = ldm_core.load("model.safetensors", device="cpu")
    ldm_core.apply_ip_adapter(model, "ip.safetensors", clip="clip.safetensors")
    wide = pictures[1]
    prompts = {
        "weak": (wide, 0.5),
        "strong": (wide, 1.0),
        "blend": ([pictures[0], fitted(wide, (32, 32))], 0.5),
    }
    for name, (picture, scale) in prompts.items():
        own = {"steps": 1, "guidance_scale": 3, "seed": 1, "image_prompt": picture, "image_scale": scale}
        [expected] = ldm_core.Sampler(model, batch_size=1).txt2img("a cat", **own)
        assert found[name].image.tobytes() == expected.tobytes(), name
        assert not found[name].noises.alone, "it is varied from its own pixels"
    assert found["weak"].image.tobytes() != found["strong"].image.tobytes()


def test_describe_prints_words(run: Run, tmp_path: Path) -> None:
    photo()
    tiny_clip().save("clip.safetensors")
    (tmp_path / "words.txt").write_text("a cat\na dog\nfire\n")
    result = run("describe", "photo.png", "--clip", "clip.safetensors", "--words", "words.txt", "--top", "2")
    assert (result.status, len(result.out)) == (0, 2)
    share, word = result.out[0].split("  ")
    assert word in ("a cat", "a dog", "fire")
    assert 1 / 3 <= float(share) <= 1


BAD = {
    "imagine": "there is nothing to draw; give a prompt or --from FILE.png",
    "imagine 'a --ar 0:1'": "--ar takes two positive numbers, such as 3:2, not 0:1",
    "imagine 'a --stylize 3'": "unknown flag --stylize; expected --ar, --no, --seed, --chaos, --tile, --iw",
    "imagine a --ar 3:2": "unrecognized arguments: --ar 3:2",
    "vary 5": "imagine-0001.png: there is no picture 5: the grid has pictures 1 to 2",
    "vary 0": "there is no picture 0",
    "vary imagine-0001.png": "has 2 pictures: give the number of one of them before the file",
    "vary 1 a.png b.png": "expected [NUMBER] FILE.png, got a.png b.png",
    "vary 1 -o empty": "there is no grid in",
    "vary 1 --weak --strong": "not allowed with argument --weak",
    "vary photo.png": "photo.png: a PNG file without a recipe",
    "zoom-out 1 --factor 1": "zoom-out takes a factor above 1",
    "pan west 1": "invalid choice",
    "upscale 1 imagine-0001.png --image photo.png": "--image: not for a picture of a grid",
    "upscale model.ckpt --scale 2": "--scale: only for a picture of a grid: upscale [NUMBER] FILE.png",
    "upscale 1 --strength 2": "strength must be in (0, 1]",
    "blend photo.png": "blend takes two pictures or more, got 1",
    "blend photo.png imagine-0001.png": "a grid; save its pictures with --separate, and blend these",
    "describe photo.png": "describe needs a CLIP",
    "imagine a --image photo.png --ip-adapter ip.bin": "--ip-adapter needs --clip FILE|FOLDER, the CLIP that",
    "imagine a --image photo.png --clip clip.pt": "--clip needs --ip-adapter FILE",
    "imagine a --image photo.png --ip-adapter no.bin --clip no.pt": "no such file",
    "blend photo.png photo.png --ip-adapter ip.bin": "--ip-adapter needs --clip FILE|FOLDER, the CLIP that",
}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("line", BAD)
def test_bad_commands_end_in_one_line(run: Run, drawn: str, line: str) -> None:
    photo()
    Path("empty").mkdir()
    result = run(*shlex.split(line))
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert BAD[line] in result.err[0]


def test_files_that_a_picture_names_need_trust(run: Run, drawn: str) -> None:
    picture = Grid.open(drawn).pick(1)
    recipe = replace(picture.recipe, autoencoder=SourceFile("vae.pt", "", "/etc/passwd"))
    Picture(picture.image, recipe).save("mine.png")
    result = run("vary", "mine.png")
    assert result.status == 2
    assert "names files that are read only with --trust-paths" in result.err[0]
