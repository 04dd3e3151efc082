"""The command line: what it writes, what it says, and what it refuses before anything is drawn."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shlex
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint_files import safetensors_bytes, torch_zip
from conftest import TINY
from PIL import Image, ImageOps, PngImagePlugin
from safetensors import safe_open
from safetensors.torch import save, save_file

import ldm_core
from ldm_core import cli
from ldm_core.cli import models_to_draw, plan
from ldm_core.cli import run as commands
from ldm_core.model import build, bundled_model
from ldm_core.recipe import Recipe, SourceFile, file_sha256, read_recipe, source_file, write_png

ROOT = Path(ldm_core.__file__).parent.parent
DOCS = ROOT / "docs" / "cli.md"
SMALL = ("--size", "64")  # where it does not matter what is drawn
WEIGHT = "model.diffusion_model.middle_block.0.in_layers.2.bias"


@dataclass(frozen=True)
class Result:
    status: int
    out: list[str]  # the lines of standard output
    err: list[str]


Run = Callable[..., Result]
Draw = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The networks are tiny: more threads only wait for one another where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundled: ldm_core.LatentDiffusion,
) -> Run:
    """Runs the command line in an empty folder; the bundled model is read from disk only once."""
    monkeypatch.chdir(tmp_path)

    def load(path: Any = None, *, dtype: Any = None, **options: Any) -> ldm_core.LatentDiffusion:
        if path is None and dtype in (None, torch.float32) and options["config"] is None:
            return bundled
        return ldm_core.load(path, dtype=dtype, **options)

    monkeypatch.setattr(models_to_draw, "load", load)

    def run(*argv: str) -> Result:
        status = cli.main([str(arg) for arg in argv])
        captured = capsys.readouterr()
        return Result(status, captured.out.splitlines(), captured.err.splitlines())

    return run


@pytest.fixture
def draw(run: Run) -> Draw:
    """The same for a command that must succeed in silence, in two steps on the CPU; the files written."""

    def draw(*argv: str) -> list[str]:
        result = run(*argv, "--steps", "2", "--device", "cpu")
        assert (result.status, result.err) == (0, [])
        return result.out

    return draw


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.array(image).astype(int)


def photo(path: str = "photo.png", size: tuple[int, int] = (64, 64), mode: str = "RGB") -> str:
    """A picture that is different everywhere."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    rgb = np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)
    if mode == "I;16":
        Image.fromarray((x * 257).astype(np.uint16)).save(path)
    else:
        Image.fromarray(rgb).convert(mode).save(path)
    return path


def mask(path: str = "mask.png", size: tuple[int, int] = (64, 64)) -> str:
    """White on the left half."""
    white = np.zeros(size[::-1], np.uint8)
    white[:, : size[0] // 2] = 255
    Image.fromarray(white).save(path)
    return path


def bundled_tensors() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(bundled_model(), "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


def subprocess_env() -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


COMMAND = [sys.executable, "-m", "ldm_core"]


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


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("ddpm", ldm_core.DDPM()),
        ("plms", ldm_core.PNDM()),
        ("pndm", ldm_core.PNDM()),
        ("pndm-rk", ldm_core.PNDM(warmup="runge_kutta")),
        ("dpm++2m", ldm_core.DPMSolverMultistep()),
        ("dpm++2m-karras", ldm_core.DPMSolverMultistep(spacing="karras")),
        ("unipc", ldm_core.UniPC()),
        ("euler", ldm_core.Euler()),
        ("euler-a", ldm_core.EulerAncestral()),
        ("heun", ldm_core.Heun()),
        ("lms", ldm_core.LMS()),
    ],
)
def test_schedulers_by_name(draw: Draw, bundled: ldm_core.LatentDiffusion, name: str, scheduler: Any) -> None:
    draw("txt2img", "fire", "--scheduler", name, "--seed", "2", "-o", "a.png")
    [expected] = ldm_core.Sampler(bundled, scheduler).txt2img("fire", steps=2, guidance_scale=4, seed=2)
    assert (pixels("a.png") == np.array(expected)).all()


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
    monkeypatch.setattr(models_to_draw, "load", lambda *_, **__: bundled)

    def recipe(*argv: str) -> Any:
        return plan.prepare(cli.build_parser().parse_args(["txt2img", "x", *argv])).recipes[0]

    assert (recipe().steps, recipe().guidance_scale) == (25, 4.0)
    other = recipe("--model", str(bundled_model()))
    assert (other.steps, other.guidance_scale, other.scheduler) == (50, 7.5, "DDIM")
    assert other.model.path == str(bundled_model())
    assert recipe().seed != recipe().seed, "a fresh seed each time"


# The same picture again


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
    assert run(task, "--from", "a.png", "-o", "b.png", "--device", "cpu") == Result(0, ["b.png"], [])
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
    result = run("img2img", "--from", "a.png", "-o", "b.png", "--device", "cpu")
    assert (result.status, result.out, len(result.err)) == (0, ["b.png"], 1)
    assert re.match(r"ldm-core: warning: a.png was drawn with the image photo.png \(sha256", result.err[0])
    assert run("img2img", "--from", "a.png", "-o", "c.png", "--device", "cpu", "-q").err == []
    os.remove("photo.png")
    result = run("img2img", "--from", "a.png", "-o", "d.png")
    assert result.status == 2
    assert "which is not at photo.png: give it with --image" in result.err[0]


def test_another_model_is_said(draw: Draw, run: Run) -> None:
    tensors, metadata = bundled_tensors()
    model = Path("other.safetensors")
    model.write_bytes(save(tensors, metadata={**metadata, "note": "the same weights in another file"}))
    draw("txt2img", "fire", *SMALL, "-o", "a.png")
    result = run(
        "txt2img", "--from", "a.png", "--model", "other.safetensors", "-o", "b.png", "--device", "cpu"
    )
    assert (result.status, len(result.err)) == (0, 1)
    assert "with the model emoji.safetensors" in result.err[0]
    assert (pixels("a.png") == pixels("b.png")).all()
    assert run("txt2img", "--from", "b.png", "-o", "c.png", "--device", "cpu") == Result(0, ["c.png"], [])
    model.unlink()
    result = run("txt2img", "--from", "b.png", "-o", "d.png")
    assert result.status == 2
    assert "which is not at other.safetensors: give it with --model" in result.err[0]


def test_a_picture_of_another_program(draw: Draw, run: Run) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters", "panda\nSteps: 2, Sampler: PLMS, CFG scale: 3, Seed: 6, Size: 64x64, Model: v1-5"
    )
    Image.new("RGB", (8, 8)).save("web.png", pnginfo=info)
    result = run("txt2img", "--from", "web.png", "-o", "a.png")
    assert result.status == 2
    assert "drawn with v1-5 (sha256 unknown), which does not come with this package" in result.err[0]
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
    assert "the sampler 'DPM fast', which is not known here; choose one with --scheduler" in result.err[0]


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
    monkeypatch.setattr(models_to_draw, "load", load)
    run("txt2img", "--from", "a.png")
    run("txt2img", "--from", "a.png", "--dtype", "float32")
    assert asked == [torch.bfloat16, torch.float32]


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
        "ldm-core: warning: the prompt cat cat cat cat cat … has 76 tokens, and only 75 fit"
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
    assert "a-steps is already there; --force overwrites it" in result.err[0]
    draw(*shown, "--force")
    assert sorted(os.listdir("a-steps")) == ["0001.png", "0002.png", "strip.png"]


# Nothing is overwritten


def test_nothing_is_overwritten_without_force(draw: Draw, run: Run) -> None:
    draw("txt2img", "fire", *SMALL, "--seed", "1", "-o", "a.png")
    before = Path("a.png").read_bytes()
    result = run("txt2img", "panda", "-o", "a.png")
    assert (result.status, result.out) == (2, [])
    assert result.err == ["ldm-core: error: --output a.png: the file is already there; --force overwrites it"]
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
    drawn = commands._draw_chunk

    def draw_while_another_writes(*args: Any) -> Any:
        Path("txt2img-0001.png").write_text("mine")
        return drawn(*args)

    monkeypatch.setattr(commands, "_draw_chunk", draw_while_another_writes)
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


# Bad input


def bad_inputs() -> dict[str, tuple[str, str]]:
    """{what: (command line, what the one line on standard error says)}; all before a model is loaded."""
    return {
        "no command": ("", "arguments are required: COMMAND"),
        "unknown command": ("paint x", "invalid choice: 'paint'"),
        "unknown option": ("txt2img x --sampler ddim", "unrecognized arguments: --sampler ddim"),
        "abbreviated option": ("txt2img x --neg y", "unrecognized arguments: --neg"),
        "no prompt": ("txt2img", "there is nothing to draw"),
        "no prompts in the file": ("txt2img --prompts blank.txt", "there is nothing to draw"),
        "no such prompts file": ("txt2img --prompts none.txt", "none.txt: No such file"),
        "prompts that are not text": ("txt2img --prompts photo.png", "photo.png: not UTF-8 text"),
        "prompts twice": ("txt2img x --prompts blank.txt", "not both"),
        "negative prompts do not fit": (
            "txt2img a b c --negative-prompt d --negative-prompt e",
            "3 prompt(s) take one --negative-prompt, or one for each, got 2",
        ),
        "seeds do not fit": ("txt2img a b --seed 1,2,3", "expected one seed per image (2), got 3"),
        "seed is no number": ("txt2img x --seed one", "argument --seed: expected whole numbers"),
        "seed is negative": ("txt2img x --seed -1", "a seed must be an int in 0..2**63-1, not -1"),
        "seed is too large": ("txt2img x --seed 9223372036854775808", "a seed must be an int in 0..2**63-1"),
        "num 0": ("txt2img x --num 0", "argument --num: expected a positive whole number, not '0'"),
        "batch size": ("txt2img x --batch-size -2", "expected a positive whole number, not '-2'"),
        "steps is no number": ("txt2img x --steps many", "argument --steps: invalid int value: 'many'"),
        "guidance": ("txt2img x --guidance nan", "argument --guidance: expected a number, not 'nan'"),
        "rescale": ("txt2img x --guidance-rescale 2", "rescale must be in [0, 1], not 2.0"),
        "eta": ("txt2img x --eta 1.5", "eta must be in [0, 1], not 1.5"),
        "eta of another": (
            "txt2img x --eta 0.5 --scheduler ddpm",
            "--eta belongs to the ddim and euler-a schedulers",
        ),
        "scheduler": ("txt2img x --scheduler dpm2", "argument --scheduler: invalid choice: 'dpm2'"),
        "size": ("txt2img x --size 64by64", "expected WIDTHxHEIGHT or one number, such as 768x512"),
        "dtype": ("txt2img x --dtype float8", "argument --dtype: invalid choice"),
        "device": ("txt2img x --device gpu", "--device gpu cannot be used here"),
        "device without numbers": ("txt2img x --device meta", "--device meta cannot be used here"),
        "output folder": ("txt2img x -o none", "--output none: no such folder"),
        "output folder with a slash": ("txt2img x -o none.png/", "--output none.png/: no such folder"),
        "folder of the output": ("txt2img x -o none/a.png", "nothing can be written in none: No such file"),
        "file as a folder": ("txt2img x -o photo.png/a.png", "nothing can be written in photo.png"),
        "output is no PNG": ("txt2img x -o a.jpg", "give one that is there, or a file name in .png"),
        "two in one file": ("txt2img x --num 2 -o a.png", "2 pictures do not fit in one file"),
        "no image": ("img2img x", "img2img needs --image FILE"),
        "no mask": ("inpaint x --image photo.png", "inpaint needs --mask FILE"),
        "image is missing": ("img2img x --image none.png", "none.png: No such file"),
        "image is a folder": ("img2img x --image .", ".: Is a directory"),
        "image is no picture": (
            "img2img x --image blank.txt",
            "blank.txt: the picture cannot be read (not",
        ),
        "image is cut": ("img2img x --image cut.png", "cut.png: the picture cannot be read"),
        "mask of another size": (
            "inpaint x --image photo.png --mask small.png --size 32",
            "the mask has 32×16 pixels, the image 64×64; they must be the same",
        ),
        "from nowhere": ("txt2img --from none.png", "none.png: No such file"),
        "from no PNG": ("txt2img --from blank.txt", "blank.txt: not a PNG file"),
        "from a bare PNG": ("txt2img --from photo.png", "photo.png: a PNG file without a recipe"),
        "inspect nothing": ("inspect none.ckpt", "none.ckpt: there is no such file"),
        "inspect a folder": ("inspect .", ".: a folder, and not a diffusers model's"),
        "inspect a text": ("inspect blank.txt", "blank.txt"),
        "inspect a bare PNG": ("inspect photo.png", "photo.png: a PNG file without a recipe"),
    }


@pytest.mark.parametrize(("command", "message"), bad_inputs().values(), ids=bad_inputs())
def test_bad_input_ends_in_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    photo()
    mask("small.png", (32, 16))
    Path("blank.txt").write_text(" \n\n")
    Path("cut.png").write_bytes(Path("photo.png").read_bytes()[:100])
    before = sorted(os.listdir())

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(models_to_draw, "load", load)
    result = run(*shlex.split(command))
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert result.err[0].startswith("ldm-core: error: ")
    assert message in result.err[0]
    assert sorted(os.listdir()) == before


# These need the model: what it can do is not known before.
MODEL_DEPENDENT = {
    "steps 0": ("txt2img x --steps 0", "the number of steps must be a whole number in 1..1000, not 0"),
    "steps over T": ("txt2img x --steps 1001", "in 1..1000, not 1001"),
    "size": (
        "txt2img x --size 70x64",
        "multiple of 64 pixels, not 70; nearest: 64 or 128",
    ),
    "image size": ("img2img x --image odd.png", "height must be a positive multiple of 64 pixels, not 50"),
    "strength 0": ("img2img x --image photo.png --strength 0", "strength must be in (0, 1], not 0.0"),
    "strength 2": ("img2img x --image photo.png --strength 2", "strength must be in (0, 1], not 2.0"),
    "clip skip": ("txt2img x --clip-skip 4", "clip_skip must be in 0..3, not 4"),
    "spacing": ("txt2img x --steps 3 --spacing compvis", "reaches timestep"),
    "not text": ("txt2img \udc80", "prompt is not valid Unicode text"),
}


@pytest.mark.parametrize(("command", "message"), MODEL_DEPENDENT.values(), ids=MODEL_DEPENDENT)
def test_what_the_model_cannot_do_ends_in_one_line(run: Run, command: str, message: str) -> None:
    photo()
    photo("odd.png", (64, 50))
    result = run(*command.split(" "))
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert message in result.err[0]
    assert sorted(os.listdir()) == ["odd.png", "photo.png"]


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def model_file(case: str) -> bytes:
    """A file that is no good as a model."""
    good = bundled_model().read_bytes()
    others = {
        "empty": b"",
        "half": good[: len(good) // 2],
        "page": b"<!DOCTYPE html><html><body>404</body></html>",
        "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4265380512\n",
        "hostile": torch_zip(pickle.dumps({"state_dict": Hostile()}, protocol=2)),
        "lying": safetensors_bytes({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 99]}}),
    }
    if case in others:
        return others[case]
    tensors, metadata = bundled_tensors()
    if case == "missing":
        del tensors[WEIGHT]
    elif case == "extra":
        tensors["model.diffusion_model.extra"] = torch.zeros(3)
    elif case == "shape":
        tensors[WEIGHT] = tensors[WEIGHT][1:]
    elif case == "nan":
        tensors[WEIGHT] = tensors[WEIGHT] * float("nan")
    return save(tensors, metadata=metadata)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("empty", "is empty"),
        ("half", "cut short"),
        ("page", "web page"),
        ("pointer", "git-lfs pointer"),
        ("hostile", "model.ckpt: "),
        ("lying", "model.ckpt: "),
        ("missing", WEIGHT),
        ("extra", "model.diffusion_model.extra"),
        ("shape", WEIGHT),
        ("nan", "not finite"),
    ],
)
def test_bad_models_end_in_one_line(run: Run, case: str, message: str) -> None:
    Path("model.ckpt").write_bytes(model_file(case))
    result = run("txt2img", "x", "--model", "model.ckpt")
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert result.err[0].startswith("ldm-core: error: ")
    assert message in result.err[0]
    assert os.listdir() == ["model.ckpt"], "nothing is written, nothing was executed"


def test_a_configuration_that_contradicts_the_file(run: Run) -> None:
    result = run("txt2img", "x", "--model", str(bundled_model()), "--config", "sd1")
    assert (result.status, len(result.err)) == (2, 1)
    assert "contradicts preset sd1: " in result.err[0]
    result = run("txt2img", "x", "--config", "sd9")
    assert result.err[0].startswith("ldm-core: error: unknown model configuration 'sd9'")
    result = run("txt2img", "x", "--model", str(bundled_model()), "--ema")
    assert (result.status, len(result.err)) == (2, 1)
    assert "holds no averaged (EMA) weights" in result.err[0]


def test_the_wrong_command_for_a_recipe(draw: Draw, run: Run) -> None:
    draw("img2img", "x", "--image", photo(), "--strength", "0.5", "-o", "a.png")
    result = run("txt2img", "--from", "a.png")
    assert result.err == ["ldm-core: error: a.png was drawn by img2img: use ldm-core img2img --from"]
    assert result.status == 2


def test_a_recipe_with_nonsense_inside(draw: Draw, run: Run) -> None:
    draw("txt2img", "x", *SMALL, "-o", "a.png")
    good = json.loads(Image.open("a.png").info["ldm_core"])
    nonsense = {
        "scheduler_settings": {"eta": "much"},
        "scheduler": "Magic",
        "dtype": "int8",
        "seed": -1,
        "steps": 0,
        "width": 3,
    }
    for name, value in nonsense.items():
        info = PngImagePlugin.PngInfo()
        info.add_text("ldm_core", json.dumps({**good, name: value}))
        Image.new("RGB", (8, 8)).save("b.png", pnginfo=info)
        result = run("txt2img", "--from", "b.png", "--device", "cpu")
        assert (result.status, result.out, len(result.err)) == (2, [], 1), name
    assert sorted(os.listdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 1 GiB\nand more")]
)
def test_a_machine_that_is_too_small(run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(ldm_core.Sampler, "txt2img", fail)
    result = run("txt2img", "x", "--device", "cpu")
    assert (result.status, result.out, len(result.err)) == (1, [], 1)
    assert "out of memory; try a smaller --size or --batch-size" in result.err[0]


def test_a_defect_is_not_taken_for_bad_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(ldm_core.Sampler, "txt2img", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run("txt2img", "x", "--device", "cpu")


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
        cli.build_parser().parse_args(words[3:])


# As its own process


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    command = [*COMMAND, "txt2img", "fire", *SMALL, "--num", "500", "--seed", "1", "--steps", "4"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=subprocess_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline(), process.stdout.readline()]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    paths = [*map(str.strip, lines), *out.split()]
    assert 2 <= len(paths) < 500
    assert re.fullmatch(r"ldm-core: interrupted; (\d+) of 500 pictures are done and kept\n", err)
    assert f" {len(paths)} of 500" in err
    assert sorted(os.listdir(tmp_path)) == sorted(paths), "no half-written file is left"
    for n, path in enumerate(paths):
        assert pixels(tmp_path / path).shape == (64, 64, 3)
        assert read_recipe(tmp_path / path).seed == 1 + n


def test_a_reader_that_goes_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `… | head -1`: no complaint, and what was drawn is kept."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        result = run("txt2img", "fire", *SMALL, "--num", "3", "--steps", "1", "--device", "cpu")
    assert (result.status, result.err) == (1, [])
    assert os.listdir() == ["txt2img-0001.png"]


def seen_by(primary: int, terminal: Any) -> bytes:
    """What has been written on a pseudo-terminal."""
    print("(end)", file=terminal, flush=True)
    shown = b""
    while not shown.endswith(b"(end)\r\n"):
        shown += os.read(primary, 65536)
    return shown.removesuffix(b"(end)\r\n")


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are POSIX")
def test_a_terminal_sees_a_bar(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import pty
    import termios

    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with open(secondary, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        command = ["txt2img", "fire", *SMALL, "--num", "2", "--steps", "3", "--device", "cpu"]
        result = run(*command)
        assert result == Result(0, ["txt2img-0001.png", "txt2img-0002.png"], [])
        assert b"6/6" in seen_by(primary, terminal), "3 steps of each of 2 pictures"
        assert run(*command, "--quiet").status == 0
        assert seen_by(primary, terminal) == b""
    os.close(primary)


def test_convert_inspect_and_draw_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder is as good as a file: the same picture, and a recipe that finds it again."""
    small, folder, file = (tmp_path / name for name in ("small.safetensors", "folder", "again.safetensors"))
    ldm_core.checkpoint.save(build(TINY["sd1"]), small, dtype=torch.float16)
    assert cli.main(["convert", str(small), str(folder)]) == 0
    assert cli.main(["convert", str(folder), str(file), "--dtype", "float16"]) == 0
    assert capsys.readouterr().out == f"{folder}\n{file}\n"
    assert cli.main(["inspect", str(folder), "--json", "--check-values"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["format"], report["not_finite"], report["missing"]) == ("diffusers", [], [])
    pictures = []
    for name, model in (("folder", folder), ("file", file)):
        picture = tmp_path / f"{name}.png"
        options = ["--model", str(model), "--steps", "2", "--seed", "1", "-q", "-o", str(picture)]
        assert cli.main(["txt2img", "cat", *options]) == 0
        pictures.append(Image.open(picture).tobytes())
    assert pictures[0] == pictures[1]
    again = tmp_path / "again.png"
    assert cli.main(["txt2img", "--from", str(tmp_path / "folder.png"), "-q", "-o", str(again)]) == 0
    assert Image.open(again).tobytes() == pictures[0]


def test_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = str(bundled_model()), str(tmp_path / "m.ckpt")
    assert cli.main(["merge", source, source, target, "--alpha", "0.25"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert cli.main(["merge", source, source, source, target]) == 2
    assert "already there; --force overwrites" in capsys.readouterr().err
    assert cli.main(["merge", source, source, source, target, "--force"]) == 0
    assert cli.main(["merge", source, str(tmp_path / "x")]) == 2
    assert "merge takes two models, or three" in capsys.readouterr().err


def test_inspect_of_nothing_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"weight": torch.tensor([float("nan")])}, path)
    assert cli.main(["inspect", str(path), "--check-values"]) == 0
    out = capsys.readouterr().out
    assert "not a known kind" in out
    assert "1 tensor (weight) with NaN" in out
    assert "not by this package" in out


def test_adapters_and_another_autoencoder(
    tmp_path: Path, bundled: ldm_core.LatentDiffusion, capsys: pytest.CaptureFixture[str]
) -> None:
    """They change the picture, and the recipe finds them again."""
    layer = bundled.unet.mid.attention.blocks[0].attn2.to_k  # type: ignore[attr-defined]
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    generator = torch.Generator().manual_seed(0)
    lora, word, vae = tmp_path / "style=1.safetensors", tmp_path / "word.pt", tmp_path / "vae.ckpt"
    save_file(
        {
            f"{name}.lora_down.weight": torch.randn(4, layer.in_features, generator=generator),
            f"{name}.lora_up.weight": torch.randn(layer.out_features, 4, generator=generator),
        },
        lora,
    )
    width = bundled.config.text_encoder.width
    torch.save({"string_to_param": {"*": torch.randn(2, width, generator=generator)}, "name": "word"}, word)
    torch.save({k: v * 1.01 for k, v in bundled.autoencoder.state_dict().items()}, vae)  # type: ignore[attr-defined]
    from ldm_core.checkpoint.original_file import model_map

    names = {e.parameters[0]: key for key, e in model_map(bundled.config).items() if "first_stage" in key}
    decoder = {
        names[f"autoencoder.{k}"].removeprefix("first_stage_model."): (
            v[:, :, None, None] if ".attn" in k and v.ndim == 2 else v
        )
        for k, v in torch.load(vae).items()
    }
    torch.save(decoder, vae)

    def draw(*options: str) -> bytes:
        picture = tmp_path / "x.png"
        common = ["--steps", "2", "-q", "--force", "-o", str(picture)]
        assert cli.main(["txt2img", *options, *common]) == 0
        return Image.open(picture).tobytes()

    prompt = ["a word of cats", "--seed", "1"]
    plain = draw(*prompt)
    options = {
        "lora": ["--lora", f"{lora}=0.5"],
        "whole": ["--lora", str(lora)],
        "word": ["--embedding", str(word)],
        "autoencoder": ["--autoencoder", str(vae)],
    }
    pictures = [draw(*prompt, *more) for more in options.values()]
    assert len({plain, *pictures}) == 5
    together = draw(*prompt, *options["lora"], *options["word"], *options["autoencoder"])
    recipe = read_recipe(tmp_path / "x.png")
    assert [(adapter.file.path, adapter.scale) for adapter in recipe.loras] == [(str(lora), 0.5)]
    assert [adapter.name for adapter in recipe.embeddings] == ["word"]
    assert recipe.autoencoder == source_file(vae)
    (tmp_path / "x.png").rename(tmp_path / "recipe.png")
    assert draw("--from", str(tmp_path / "recipe.png")) == together
    assert cli.main(["inspect", str(tmp_path / "recipe.png")]) == 0
    assert "VAE: vae.ckpt, Lora hashes: " in capsys.readouterr().out
    assert cli.main(["txt2img", "x", "--lora", f"{lora}=much", "-o", str(tmp_path)]) == 2
    assert "expected a number as the scale" in capsys.readouterr().err
    lora.unlink()
    assert cli.main(["txt2img", "--from", str(tmp_path / "recipe.png"), "-o", str(tmp_path)]) == 2
    assert "give it with --lora" in capsys.readouterr().err
