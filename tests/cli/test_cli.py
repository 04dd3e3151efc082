"""The command line: what it writes, and what it says."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.cli_runs import ROOT, SMALL, Draw, Run, mask, photo, pixels

import ldm_core
from ldm_core import cli
from ldm_core.cli import defaults, model, parser, plan
from ldm_core.cli import draw as drawing
from ldm_core.loading.load import bundled_model
from ldm_core.recipe import SourceFile, file_sha256, read_recipe

DOCS = ROOT / "docs" / "cli.md"


# What is drawn


def test_txt2img_draws_what_the_library_draws(draw: Draw, bundled: ldm_core.LatentDiffusion) -> None:
    assert draw("txt2img", "grinning cat", "--seed", "1", "-o", "cat.png") == ["cat.png"]
    [expected] = ldm_core.Sampler(bundled).txt2img("grinning cat", steps=2, guidance_scale=4.0, seed=1)
    assert (pixels("cat.png") == np.array(expected)).all()
    recipe = read_recipe("cat.png")
    assert (recipe.prompt, recipe.seed, recipe.steps, recipe.guidance_scale) == ("grinning cat", 1, 2, 4.0)
    assert (recipe.width, recipe.height, recipe.device, recipe.dtype) == (128, 128, "cpu", "float32")
    assert recipe.model == SourceFile("emoji.safetensors", file_sha256(bundled_model()), None)
    assert recipe.versions == {"ldm_core": ldm_core.__version__, "torch": torch.__version__}


def test_every_option_reaches_the_library(draw: Draw, bundled: ldm_core.LatentDiffusion) -> None:
    options = "--eta 0.7 --spacing trailing --guidance 3 --guidance-rescale 0.5 --size 128x64 --clip-skip 1"
    draw("txt2img", "panda", "--negative-prompt", "blue", *options.split(), "--seed", "5", "-o", "a.png")
    sampler = ldm_core.Sampler(
        bundled,
        ldm_core.DDIM(eta=0.7, spacing="trailing"),
        ldm_core.ClassifierFreeGuidance(rescale=0.5),
        clip_skip=1,
    )
    [expected] = sampler.txt2img("panda", "blue", steps=2, guidance_scale=3, width=128, height=64, seed=5)
    assert expected.size == (128, 64)
    assert (pixels("a.png") == np.array(expected)).all()


SCHEDULERS = {
    "plms": ldm_core.PNDM(),
    "dpm++2m-karras": ldm_core.DPMSolverMultistep(spacing="karras"),
    "euler-a": ldm_core.EulerAncestral(),
}
OTHER_SCHEDULERS = {
    "ddpm": ldm_core.DDPM(),
    "pndm": ldm_core.PNDM(),
    "pndm-rk": ldm_core.PNDM(warmup="runge_kutta"),
    "dpm++2m": ldm_core.DPMSolverMultistep(),
    "unipc": ldm_core.UniPC(),
    "euler": ldm_core.Euler(),
    "heun": ldm_core.Heun(),
    "lms": ldm_core.LMS(),
}


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        *SCHEDULERS.items(),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHER_SCHEDULERS.items()),
    ],
)
def test_schedulers_by_name(draw: Draw, bundled: ldm_core.LatentDiffusion, name: str, scheduler: Any) -> None:
    draw("txt2img", "fire", "--scheduler", name, "--seed", "2", "-o", "a.png")
    [expected] = ldm_core.Sampler(bundled, scheduler).txt2img("fire", steps=2, guidance_scale=4, seed=2)
    assert (pixels("a.png") == np.array(expected)).all()


def test_the_parser_offers_every_scheduler() -> None:
    assert tuple(plan.SCHEDULERS) == defaults.SCHEDULERS


def test_img2img_and_inpaint_draw_what_the_library_draws(
    draw: Draw, bundled: ldm_core.LatentDiffusion
) -> None:
    sampler = ldm_core.Sampler(bundled)
    options: dict[str, Any] = {"steps": 2, "guidance_scale": 4, "seed": 3}
    image, white = Image.open(photo()), Image.open(mask())
    draw("img2img", "fire", "--image", "photo.png", "--strength", "0.5", "--seed", "3", "-o", "i.png")
    [expected] = sampler.img2img("fire", image, 0.5, **options)
    assert (pixels("i.png") == np.array(expected)).all()
    draw("inpaint", "fire", "--image", "photo.png", "--mask", "mask.png", "--seed", "3", "-o", "p.png")
    [expected] = sampler.inpaint("fire", image, white, **options)
    assert (pixels("p.png") == np.array(expected)).all()
    assert (pixels("p.png") == np.array(image))[:, 32:].all(), "what is black in the mask stays as it was"
    recipe = read_recipe("p.png")
    assert recipe.image == SourceFile("photo.png", file_sha256("photo.png"), "photo.png")
    assert recipe.mask == SourceFile("mask.png", file_sha256("mask.png"), "mask.png")
    assert recipe.strength == 1.0


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_pictures_of_any_mode_come_in(draw: Draw, mode: str) -> None:
    path = photo("photo.tif" if mode == "CMYK" else "photo.png", mode=mode)
    assert draw("img2img", "fire", "--image", path, "--strength", "0.5") == ["img2img-0001.png"]


def test_a_size_fits_the_pictures_that_come_in(draw: Draw) -> None:
    """Turned upright, cut to the proportions, and scaled: image and mask alike."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.open(photo(size=(90, 200))).save("photo.jpg", exif=exif)
    mask(size=(200, 90))
    draw("inpaint", "x", "--image", "photo.jpg", "--mask", "mask.png", "--size", "128x64", "-o", "a.png")
    with Image.open("photo.jpg") as image:
        expected = ImageOps.fit(ImageOps.exif_transpose(image), (128, 64), Image.Resampling.LANCZOS)
    assert pixels("a.png").shape == (64, 128, 3)
    assert (pixels("a.png")[:, 64:] == np.array(expected)[:, 64:]).all(), "the mask's black half"
    draw("img2img", "x", "--image", "photo.jpg", "--size", "64", "--strength", "0.5", "-o", "b.png")
    assert (read_recipe("b.png").width, read_recipe("b.png").height) == (64, 64)


def test_defaults_for_the_bundled_model_and_for_others(
    run: Run, monkeypatch: pytest.MonkeyPatch, bundled: ldm_core.LatentDiffusion
) -> None:
    monkeypatch.setattr(model, "load", lambda *_, **__: bundled)

    def recipe(*argv: str) -> Any:
        return plan.prepare(parser.build_parser().parse_args(["txt2img", "x", *argv])).recipes[0]

    assert (recipe().steps, recipe().guidance_scale) == (25, 4.0)
    other = recipe("--model", str(bundled_model()))
    assert (other.steps, other.guidance_scale, other.scheduler) == (50, 7.5, "DDIM")
    assert other.model.path == str(bundled_model())
    assert recipe().seed != recipe().seed, "a fresh seed each time"


# Many pictures


def test_chunks_do_not_change_the_pictures(draw: Draw) -> None:
    one = draw("txt2img", "fire", "panda", *SMALL, "--num", "2", "--seed", "3")
    two = draw("txt2img", "fire", "panda", *SMALL, "--num", "2", "--seed", "3", "--batch-size", "3")
    assert one == [f"txt2img-000{n}.png" for n in (1, 2, 3, 4)]
    assert two == [f"txt2img-000{n}.png" for n in (5, 6, 7, 8)]
    recipes = [read_recipe(path) for path in one]
    assert [(r.prompt, r.seed) for r in recipes] == [("fire", 3), ("fire", 4), ("panda", 5), ("panda", 6)]
    for a, b in zip(one, two):
        assert read_recipe(a) == read_recipe(b)
        assert np.abs(pixels(a) - pixels(b)).max() <= 1  # float32 rounding at the border of two levels
    assert np.abs(pixels(one[0]) - pixels(one[1])).max() > 50


def test_a_list_of_seeds_makes_as_many_pictures(draw: Draw) -> None:
    paths = draw("txt2img", "fire", *SMALL, "--seed", "11,3,11")
    assert [read_recipe(path).seed for path in paths] == [11, 3, 11]
    assert (pixels(paths[0]) == pixels(paths[2])).all()


def test_prompts_from_a_file_and_from_standard_input(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '\ufeffa cat: "grey"\r\n\n  猫, 🐱  \nlast without an end'
    Path("prompts.txt").write_bytes(text.encode())
    paths = draw("txt2img", "--prompts", "prompts.txt", *SMALL, "--negative-prompt", "dog")
    assert [read_recipe(path).prompt for path in paths] == ['a cat: "grey"', "猫, 🐱", "last without an end"]
    assert {read_recipe(path).negative_prompt for path in paths} == {"dog"}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("été\n".encode())))
    [path] = draw("txt2img", "--prompts", "-", *SMALL)
    assert read_recipe(path).prompt == "été"


def test_a_negative_prompt_for_each_prompt(draw: Draw) -> None:
    paths = draw("txt2img", "a", "b", *SMALL, "--negative-prompt", "c", "--negative-prompt", "d")
    assert [read_recipe(path).negative_prompt for path in paths] == ["c", "d"]


def test_a_cut_prompt_is_said_once(run: Run) -> None:
    result = run("txt2img", "cat " * 76, *SMALL, "--num", "2", "--steps", "1", "--device", "cpu")
    assert (result.status, len(result.out), len(result.err)) == (0, 2, 1)
    assert result.err[0].startswith(
        "ldm-core: warning: the prompt cat cat cat cat cat … has 76 tokens, but only 75 fit"
    )
    assert "lost: 'cat'" in result.err[0]


def test_steps_are_shown(draw: Draw, run: Run, bundled: ldm_core.LatentDiffusion) -> None:
    paths = draw("txt2img", "fire", "--num", "2", "--seed", "1", "--batch-size", "2", "--show-steps")
    stems = ["txt2img-0001", "txt2img-0002"]
    names = [".png", "-steps/0001.png", "-steps/0002.png", "-steps/strip.png"]
    assert paths == [stem + name for stem in stems for name in names]
    x0 = [step.x0 for step in ldm_core.Sampler(bundled).steps("fire", steps=2, guidance_scale=4.0, seed=1)]
    with torch.no_grad():
        frames = [((bundled.decode_latent(x) / 2 + 0.5).clamp(0, 1) * 255).round() for x in x0]
    assert pixels(paths[3]).shape[1] > 2 * 128, "a column for each step"
    for path, frame in zip(paths[1:3], frames):
        assert np.abs(pixels(path) - frame[0].permute(1, 2, 0).numpy()).max() <= 1  # batch of 2, and of 1
    shown = ["txt2img", "x", *SMALL, "-o", "a.png", "--show-steps", "--device", "cpu"]
    assert run(*shown, "--steps", "3").status == 0
    os.remove("a.png")
    result = run(*shown)
    assert (result.status, result.out) == (2, [])
    assert "the folder a-steps already exists; --force overwrites it" in result.err[0]
    draw(*shown, "--force")
    assert sorted(os.listdir("a-steps")) == ["0001.png", "0002.png", "strip.png"]


# Nothing is overwritten


def test_nothing_is_overwritten_without_force(draw: Draw, run: Run) -> None:
    draw("txt2img", "fire", *SMALL, "--seed", "1", "-o", "a.png")
    before = Path("a.png").read_bytes()
    result = run("txt2img", "panda", "-o", "a.png")
    assert (result.status, result.out) == (2, [])
    assert result.err == ["ldm-core: error: --output a.png: the file already exists; --force overwrites it"]
    assert Path("a.png").read_bytes() == before
    assert draw("txt2img", "panda", *SMALL, "--seed", "1", "-o", "a.png", "--force") == ["a.png"]
    assert read_recipe("a.png").prompt == "panda"
    assert os.listdir() == ["a.png"]


def test_numbers_go_on_after_the_highest(draw: Draw) -> None:
    os.mkdir("out")
    for name in ("txt2img-0007.png", "txt2img-12-steps", "img2img-0050.png", "txt2img-x.png"):
        Path("out", name).touch()
    expected = [os.path.join("out", f"txt2img-00{n}.png") for n in (13, 14)]
    assert draw("txt2img", "fire", *SMALL, "-o", "out") == expected[:1]
    assert draw("txt2img", "fire", *SMALL, "-o", "out/", "--force") == expected[1:]
    assert Path("out", "txt2img-0007.png").read_bytes() == b""


def test_a_name_that_is_taken_meanwhile_is_left_alone(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawing._draw_chunk

    def draw_while_another_writes(*args: Any) -> Any:
        Path("txt2img-0001.png").write_text("mine")
        return drawn(*args)

    monkeypatch.setattr(drawing, "_draw_chunk", draw_while_another_writes)
    assert draw("txt2img", "fire", *SMALL) == ["txt2img-0002.png"]
    assert Path("txt2img-0001.png").read_text() == "mine"


def test_a_failed_write_leaves_nothing_behind(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device", "a.png")

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("txt2img", "fire", *SMALL, "--steps", "1", "--device", "cpu")
    assert (result.status, result.out) == (2, [])
    assert result.err == ["ldm-core: error: a.png: No space left on device"]
    assert os.listdir() == []


# Telling what is in a file


def test_inspect(run: Run, draw: Draw) -> None:
    result = run("inspect", str(bundled_model()))
    assert (result.status, result.err) == (0, [])
    assert re.search(r"unet +404 tensors, 16,285,712 parameters", "\n".join(result.out))
    assert "None" not in "\n".join(result.out)
    report = json.loads(run("inspect", str(bundled_model()), "--json").out[0])
    assert report["tensors"] == 685
    draw("txt2img", "fire", *SMALL, "--seed", "1", "-o", "a.png")
    assert run("inspect", "a.png").out[0] == "fire"
    assert json.loads(run("inspect", "a.png", "--json").out[0])["seed"] == 1


@pytest.mark.parametrize("argv", [["--help"], ["txt2img", "--help"], ["inpaint", "--help"], ["--version"]])
def test_help_and_version(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert (
        "ldm_core " + ldm_core.__version__ if argv == ["--version"] else "usage: ldm-core"
    ) in captured.out


def test_the_documented_commands_parse() -> None:
    blocks = re.findall(r"```sh\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    parts = [part.strip() for line in lines for part in line.split(" # ")[0].split(" | ")]
    commands = [part for part in parts if "ldm_core" in part]
    assert len(commands) >= 8
    for command in commands:
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "ldm_core"], command
        parser.build_parser().parse_args(words[3:])
