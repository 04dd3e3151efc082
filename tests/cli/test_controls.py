"""The command line: controls and image prompts, what it records of them, and what it refuses."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support import cli_runs
from support.cli_runs import Draw, Run, mask, photo, pixels
from support.configs import TINY
from support.controls import shaken, write_ip_adapter
from support.random_models import random_model
from support.small_models import small_model
from support.tiny_clip import tiny_clip

import ldm_core
from ldm_core.control.coadapter import StyleAdapter, StyleAdapterConfig
from ldm_core.control.controlnet import ControlNet
from ldm_core.control.t2i_adapter import T2IAdapter, T2IAdapterConfig
from ldm_core.recipe import ControlFile, read_recipe, source_file
from ldm_core.unet.network import UNet

HALF = (16, 32)  # hint widths of a ControlNet whose hints are twice as large as latents


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model of 32 pixels, 2 for a latent, and controls and an IP-Adapter for it.

    "model" is read once, and "own" by each command, which may put an IP-Adapter on it.
    """
    folder = tmp_path_factory.mktemp("files")
    model, clip = random_model(TINY["sd1"]), tiny_clip()
    networks: dict[str, Any] = {
        "model": model,
        "own": model,
        "net": shaken(ControlNet.of(model.unet, hint_widths=HALF)),
        "net2": shaken(ControlNet.of(model.unet, hint_widths=HALF), seed=1),
        "t2i": shaken(T2IAdapter(T2IAdapterConfig(3, (32, 64), 1))),
        "style": shaken(StyleAdapter(StyleAdapterConfig(32, 64, 2, 1))),
        "other": ControlNet.of(UNet(replace(model.config.unet, context_dim=32)), hint_widths=HALF),
    }
    paths = {name: str(folder / f"{name}.safetensors") for name in (*networks, "clip", "ip")}
    for name, network in networks.items():
        ldm_core.save(network, paths[name])
    clip.save(paths["clip"])
    write_ip_adapter(model, 16, Path(paths["ip"]))
    cli_runs.zoo[paths["model"]] = None
    return paths


@pytest.fixture
def start(files: dict[str, str], run: Run) -> list[str]:
    """The options of all drawings. The pictures lie in the current folder."""
    photo("hint.png", (32, 32))
    photo("wide.png", (80, 40))
    mask("white.png", (32, 32))
    return ["--model", files["model"], "--seed", "1"]


def drawn_by_the_library(model: str, **options: Any) -> np.ndarray:
    sampler = ldm_core.Sampler(ldm_core.load(model, device="cpu"))
    if "clip" in options:
        ldm_core.apply_ip_adapter(sampler.model, options.pop("ip"), clip=options.pop("clip"))
    if "controls" in options:
        options["controls"] = [
            ldm_core.Control(ldm_core.load_control(net, model=sampler.model), hint, **own)
            for net, hint, own in options["controls"]
        ]
    [image] = sampler.txt2img("a cat", steps=2, seed=1, **options)
    return np.array(image).astype(int)


def test_a_control_is_that_of_the_library_and_recorded(
    files: dict[str, str], start: list[str], draw: Draw, run: Run
) -> None:
    control = ["--control", files["net"], "--hint", "hint.png", "--control-strength", "0.5"]
    how = ["--control-window", "0:0.5", "--control-guess", "original"]
    draw("txt2img", "a cat", *start, *control, *how, "-o", "a.png")
    draw("txt2img", "a cat", *start, "-o", "plain.png")
    own = {"strength": 0.5, "end": 0.5, "guess": True}
    expected = drawn_by_the_library(files["model"], controls=[(files["net"], Image.open("hint.png"), own)])
    assert (pixels("a.png") == expected).all()
    assert (pixels("a.png") != pixels("plain.png")).any()
    record = ControlFile(source_file(files["net"]), source_file("hint.png"), 0.5, 0.0, 0.5, "original")
    assert read_recipe("a.png").controls == (record,)
    draw("txt2img", "--from", "a.png", "--trust-paths", "-o", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    text = "\n".join(run("inspect", "b.png").out)
    assert 'ControlNet 0: "Module: none, Model: net, Weight: 0.5, Resize Mode: Crop and Resize, ' in text
    assert 'Guidance End: 0.5, Control Mode: ControlNet is more important", Hint 0: hint.png' in text
    assert json.loads("".join(run("inspect", "--json", "b.png").out))["controls"][0]["strength"] == 0.5
    draw("txt2img", "--from", "a.png", "--trust-paths", "--control-strength", "0", "-o", "c.png")
    assert (pixels("c.png") == pixels("plain.png")).all()


def test_several_controls_have_their_own_settings(
    files: dict[str, str], start: list[str], draw: Draw
) -> None:
    """Hints are cropped around their centre and scaled, as other pictures are."""
    nets = ["--control", files["net"], "--hint", "wide.png", "--control", files["net2"], "--hint", "hint.png"]
    how = ["--control-strength", "0.5,2", "--control-window", "0:1", "--control-mid-only", "yes,no"]
    draw("txt2img", "a cat", *start, *nets, *how, "--control-pool", "no", "-o", "a.png")
    hint = Image.open("wide.png").crop((20, 0, 60, 40)).resize((32, 32), Image.Resampling.LANCZOS)
    controls = [
        (files["net"], hint, {"strength": 0.5, "mid_only": True}),
        (files["net2"], Image.open("hint.png"), {"strength": 2}),
    ]
    found, expected = pixels("a.png"), drawn_by_the_library(files["model"], controls=controls)
    assert abs(found - expected).max() <= 1  # Pillow crops at fractions of a pixel
    assert [(one.strength, one.mid_only) for one in read_recipe("a.png").controls] == [
        (0.5, True),
        (2, False),
    ]
    again = [
        "--from",
        "a.png",
        *nets,
        "--control",
        files["net2"],
        "--hint",
        "wide.png",
        "--trust-paths",
        "-o",
        "b.png",
    ]
    draw("txt2img", *again)
    controls = read_recipe("b.png").controls  # those of the recipe, and the defaults
    assert [one.strength for one in controls] == [0.5, 2, 1]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("command", ["img2img", "inpaint", "sample"])
def test_other_commands_draw_with_controls(
    command: str, files: dict[str, str], start: list[str], draw: Draw, tmp_path: Path
) -> None:
    first = {
        "img2img": ["img2img", "a cat", "--image", "wide.png", "--size", "40x32", *start],
        "inpaint": ["inpaint", "a cat", "--image", "hint.png", "--mask", "white.png", *start],
        "sample": ["sample", "class.safetensors", "--class", "3", "--seed", "1"],
    }[command]
    net = files["net"]
    if command == "sample":
        model, net = small_model("class"), "class-net.safetensors"
        ldm_core.save(model, "class.safetensors")
        ldm_core.save(shaken(ControlNet.of(model.unet, hint_widths=(16, 32, 64))), net)
    control = ["--control", net, "--hint", "hint.png"]
    draw(*first, "-o", "plain.png")
    draw(*first, *control, "-o", "new.png")
    draw(command, "--from", "new.png", "--trust-paths", "-o", "again.png")
    assert (pixels("again.png") == pixels("new.png")).all()
    assert (pixels("new.png") != pixels("plain.png")).any()


def test_an_image_prompt_is_that_of_the_library_and_recorded(
    files: dict[str, str], start: list[str], draw: Draw, run: Run
) -> None:
    adapter = ["--ip-adapter", files["ip"], "--clip", files["clip"]]
    prompts = ["--image-prompt", "hint.png", "--image-prompt", "wide.png", "--image-scale", "0.6"]
    draw("txt2img", "a cat", *start, "--model", files["own"], *adapter, *prompts, "-o", "a.png")
    pictures = [Image.open(name) for name in ("hint.png", "wide.png")]
    options = {"ip": files["ip"], "clip": files["clip"], "image_prompt": pictures, "image_scale": 0.6}
    assert (pixels("a.png") == drawn_by_the_library(files["model"], **options)).all()
    assert (pixels("a.png") != drawn_by_the_library(files["model"])).any()
    draw("txt2img", "--from", "a.png", "--trust-paths", "-o", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    text = run("inspect", "a.png").out[-1]
    assert "IP-Adapter: ip.safetensors, Image prompts: hint.png; wide.png, Image scale: 0.6" in text


def test_a_style_adapter_sees_through_clip(files: dict[str, str], start: list[str], draw: Draw) -> None:
    style = ["--control", files["style"], "--hint", "wide.png", "--clip", files["clip"]]
    draw("txt2img", "a cat", *start, *style, "-o", "a.png")
    own = {"clip": ldm_core.CLIP.load(files["clip"])}
    expected = drawn_by_the_library(files["model"], controls=[(files["style"], Image.open("wide.png"), own)])
    assert (pixels("a.png") == expected).all()
    draw("txt2img", "--from", "a.png", "--trust-paths", "-o", "b.png")
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_files_of_a_recipe_need_trust_or_are_given_again(
    files: dict[str, str], start: list[str], draw: Draw, run: Run
) -> None:
    control = ["--control", files["net"], "--hint", "hint.png"]
    prompt = ["--ip-adapter", files["ip"], "--clip", files["clip"], "--image-prompt", "wide.png"]
    how = ["--control-strength", "0.5", "--image-scale", "0.6"]
    own = ["--model", files["own"]]
    draw("txt2img", "a cat", *start, *own, *control, *prompt, *how, "--no-paths", "-o", "a.png")
    assert files["net"].encode() not in Path("a.png").read_bytes()
    recipe = ["--from", "a.png", *own]
    result = run("txt2img", *recipe, *prompt, "-o", "b.png")
    assert result.status == 2
    assert (
        "only with --trust-paths, or if given as options: --control 'net.safetensors', --hint"
        in result.err[0]
    )
    assert "--ip-adapter" not in result.err[0]
    result = run("txt2img", *recipe, "--trust-paths", "-o", "b.png")
    assert "net.safetensors' (sha256" in result.err[0]
    assert "whose path is not recorded: give it with --control" in result.err[0]
    draw("txt2img", *recipe, *control, *prompt, "-o", "b.png")
    assert (pixels("a.png") == pixels("b.png")).all()
    photo("hint.png", (32, 40))
    result = run("txt2img", *recipe, *control, *prompt, "--device", "cpu", "-o", "c.png")
    assert (result.status, len(result.err)) == (0, 1)
    assert "was drawn with the hint 'hint.png'" in result.err[0]


def test_the_workbench_goes_on_from_the_pixels_of_a_controlled_picture(
    files: dict[str, str], start: list[str], draw: Draw, run: Run
) -> None:
    draw("txt2img", "a cat", *start, "--control", files["net"], "--hint", "hint.png", "-o", "a.png")
    draw("vary", "a.png", "--seed", "1", "--count", "1", "-o", "b.png")
    assert read_recipe("b.png").noises.alone is False  # type: ignore[union-attr]
    result = run("imagine", "--from", "a.png", "--count", "1", "--device", "cpu", "-o", "c.png")
    assert (result.status, len(result.err)) == (0, 1)
    assert "was drawn with controls or an image prompt, and imagine draws without them" in result.err[0]


BAD = {
    "--control net": "expected a --hint for each --control, got 0 for 1",
    "--hint hint.png": "expected a --hint for each --control, got 1 for 0",
    "--control net --control net --hint hint.png": "a --hint for each --control, got 1 for 2",
    "--control other --hint hint.png": "other.safetensors is a ControlNet",
    "--control model --hint hint.png": "model.safetensors contains no ControlNet and no T2I-Adapter",
    "--control nothing.pth --hint hint.png": "nothing.pth: No such file or directory",
    "--control net --hint nothing.png": "nothing.png: No such file or directory",
    "--control net --hint clip": "--hint clip.safetensors: not a picture",
    "--control-strength 1": "--control-strength needs --control FILE",
    "--control-pool yes": "--control-pool needs --control FILE",
    "--control net --hint hint.png --control-window 0:1,0:1": "one value, or one for each --control, got 2",
    "--control net --hint hint.png --control-window 0.8:0.2": "expected START:END in [0, 1]",
    "--control net --hint hint.png --control-window 1": "expected START:END in [0, 1], such as 0:0.8",
    "--control net --hint hint.png --control-strength much": "expected a number, not 'much'",
    "--control net --hint hint.png --control-guess maybe": "expected no, original, diffusers, not 'maybe'",
    "--control t2i --hint hint.png --control-guess original": "guess and mid_only apply to a ControlNet",
    "--control style --hint hint.png": "a style adapter needs --clip FILE|FOLDER",
    "--control style --hint hint.png --clip clip --control-window 0:0.5": "act in all steps",
    "--control net --hint hint.png --clip clip": "--clip is for --ip-adapter, or for a style",
    "--ip-adapter ip --image-prompt hint.png": "--ip-adapter needs --clip FILE|FOLDER",
    "--ip-adapter ip --clip clip": "--ip-adapter FILE needs --image-prompt PICTURE",
    "--image-prompt hint.png": "--image-prompt PICTURE needs --ip-adapter FILE",
    "--clip clip": "--clip needs --ip-adapter FILE",
    "--image-scale 1": "--image-scale needs --image-prompt PICTURE",
    "--ip-adapter net --clip clip --image-prompt hint.png": "net.safetensors contains no IP-Adapter",
    "--ip-adapter ip --clip net --image-prompt hint.png": "net.safetensors",
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("line", BAD)
def test_bad_options_end_in_one_line(line: str, files: dict[str, str], start: list[str], run: Run) -> None:
    for name, path in files.items():
        Path(f"{name}.safetensors").symlink_to(path)
    words = [f"{word}.safetensors" if word in files else word for word in shlex.split(line)]
    result = run("txt2img", "a cat", *start, *words, "--steps", "1", "--device", "cpu")
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert BAD[line] in result.err[0]
