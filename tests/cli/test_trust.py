"""The command line: a recipe from a stranger does not choose which files are read."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.cli_runs import Draw, Result, Run, photo

import ldm_core
from ldm_core.cli import model
from ldm_core.loading.load import bundled_model
from ldm_core.recipe import AdapterFile, Recipe, SourceFile, read_recipe, source_file, write_png

RECIPE = Recipe(
    task="txt2img",
    prompt="x",
    seed=1,
    steps=2,
    width=64,
    height=64,
    guidance_scale=4,
    scheduler="DDIM",
    model=source_file(bundled_model(), bundled=True),
    versions={"ldm_core": "0"},
)


def recipe(path: str = "a.png", **changes: Any) -> str:
    write_png(Image.new("RGB", (8, 8)), path, replace(RECIPE, **changes))
    return path


def a_file(path: str) -> SourceFile:
    return SourceFile(os.path.basename(path), "0" * 64, path)


EVERYTHING = {
    "task": "inpaint",
    "strength": 1.0,
    "image": a_file("/home/me/photo.png"),
    "mask": a_file("\x1b[2Jmask.png"),
    "autoencoder": a_file("/vae.ckpt"),
    "loras": (AdapterFile(a_file("a.safetensors"), 0.5), AdapterFile(SourceFile("b.pt", ""), 1.0)),
    "embeddings": (AdapterFile(a_file("word.pt"), name="word"),),
    "config": "/my.yaml",
}


def test_all_files_that_a_recipe_names_are_listed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was looked at")

    path = recipe(**EVERYTHING)
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "isfile", stop)
        result = run("inpaint", "--from", path, "-o", "b.png")
    assert result == Result(
        2,
        [],
        [
            "ldm-core: error: a.png names files that are read only with --trust-paths, or if given as "
            "options: --image '/home/me/photo.png', --mask '\\x1b[2Jmask.png', --autoencoder '/vae.ckpt', "
            "--lora 'a.safetensors=0.5', --lora 'b.pt=1.0', --embedding 'word.pt=word', --config '/my.yaml'"
        ],
    )


@pytest.mark.parametrize("option", ["image", "mask", "autoencoder", "lora", "embedding", "config"])
def test_a_file_that_is_given_is_not_listed(run: Run, option: str) -> None:
    result = run("inpaint", "--from", recipe(**EVERYTHING), f"--{option}", "x", "-o", "b.png")
    others = {"image", "mask", "autoencoder", "lora", "embedding", "config"} - {option}
    assert f"--{option} " not in result.err[0]
    assert all(f"--{other} " in result.err[0] for other in others)


def test_what_a_command_does_not_need_is_not_asked_for(draw: Draw) -> None:
    path = recipe(image=a_file("/home/me/photo.png"))
    assert draw("txt2img", "--from", path, "-o", "b.png") == ["b.png"]
    assert read_recipe("b.png").image is None


def test_a_long_list_is_cut(run: Run) -> None:
    loras = tuple(AdapterFile(a_file(f"{'x' * 4000}{k}")) for k in range(100))
    [error] = run("txt2img", "--from", recipe(loras=loras), "-o", "b.png").err
    assert error.endswith("(100 in all)")
    assert len(error) < 8000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("place", ["pipe", "/dev/zero", "folder"])
def test_trusted_paths_are_regular_files(run: Run, place: str) -> None:
    os.mkfifo("pipe")
    os.mkdir("folder")
    named = a_file(place)
    for changes in (
        {"task": "img2img", "strength": 0.5, "image": named},
        {"autoencoder": named},
        {"loras": (AdapterFile(named),)},
        {"embeddings": (AdapterFile(named),)},
        {"config": place},
    ):
        path = recipe(**changes)
        result = run(changes.get("task", "txt2img"), "--from", path, "--trust-paths", "-o", "b.png")
        assert (result.status, len(result.err)) == (2, 1)
        assert f"not found at '{place}'" in result.err[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize(
    "option", ["--image", "--mask", "--prompts", "--lora", "--model", "--from", "--config"]
)
def test_pipes_and_devices_that_are_given_are_refused(run: Run, option: str) -> None:
    os.mkfifo("pipe")
    os.mkfifo("pipe.yaml")
    photo()
    options = {"--mask": ["x", "--image", "photo.png"], "--prompts": [], "--from": []}
    command = {"--image": "img2img", "--mask": "inpaint"}.get(option, "txt2img")
    os.symlink("/dev/zero", "zero.yaml")
    for place in ("pipe.yaml", "zero.yaml") if option == "--config" else ("pipe", "/dev/zero"):
        result = run(command, *options.get(option, ["x"]), option, place)
        assert (result.status, len(result.err)) == (2, 1)
        assert "not a regular file" in result.err[0]


# The model


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, bundled: ldm_core.LatentDiffusion) -> list[Any]:
    """The paths that models are loaded from."""
    paths: list[Any] = []

    def load(path: Any = None, **_: Any) -> ldm_core.LatentDiffusion:
        paths.append(path)
        return bundled

    monkeypatch.setattr(model, "load", load)
    return paths


@pytest.mark.parametrize("path", ["/nowhere/mine.safetensors", None])
def test_a_model_is_found_beside_its_picture(run: Run, loaded: list[Any], path: str | None) -> None:
    os.mkdir("sent")
    Path("sent/mine.safetensors").write_bytes(bundled_model().read_bytes() + b"\0")  # not the bundled one
    recipe("sent/a.png", model=replace(source_file("sent/mine.safetensors"), path=path))
    assert run("txt2img", "--from", "sent/a.png", "-o", ".", "-q").status == 0
    assert loaded == ["sent/mine.safetensors"]


@pytest.mark.parametrize("start", ["//", "\\\\", "\\/"])
def test_a_model_on_another_machine_is_not_looked_at(
    run: Run, loaded: list[Any], monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """To look at such a name, Windows connects to that machine and tells it who the user is."""
    path = f"{start}stranger/share/mine.safetensors"
    picture = recipe(model=a_file(path))
    looked: list[Any] = []
    monkeypatch.setattr(os.path, "isfile", lambda name: bool(looked.append(name)))
    result = run("txt2img", "--from", picture, "-o", ".")
    assert (result.status, looked) == (2, [])
    assert result.err[0].endswith(f"only with --trust-paths, or if given as options: --model {path!r}")
    run("txt2img", "--from", picture, "-o", ".", "--trust-paths")
    assert looked[0] == path


@pytest.mark.parametrize(
    "model",
    [
        SourceFile("mine.safetensors", "1" * 64, "/nowhere/mine.safetensors"),
        SourceFile("mine.safetensors", "", "/nowhere/mine.safetensors"),
        SourceFile("other.safetensors", source_file(bundled_model()).sha256, "/nowhere/mine.safetensors"),
        SourceFile("../mine.safetensors", source_file(bundled_model()).sha256, "/nowhere/mine.safetensors"),
        SourceFile("..", source_file(bundled_model()).sha256, "/nowhere/mine.safetensors"),
    ],
    ids=["checksum", "no checksum", "name", "path as a name", "folder"],
)
def test_another_model_beside_a_picture_is_not_taken(run: Run, loaded: list[Any], model: SourceFile) -> None:
    os.mkdir("sent")
    shutil.copy(bundled_model(), "sent/mine.safetensors")
    shutil.copy(bundled_model(), "mine.safetensors")
    result = run("txt2img", "--from", recipe("sent/a.png", model=model), "-o", ".")
    assert (result.status, len(result.err)) == (2, 1)
    assert "not found at '/nowhere/mine.safetensors': give it with --model" in result.err[0]
    assert loaded == []
