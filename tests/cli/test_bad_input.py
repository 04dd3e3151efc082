"""The command line: bad input ends with one line that says what was expected and what came."""

from __future__ import annotations

import json
import os
import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save
from support.checkpoint_files import safetensors_bytes, torch_zip
from support.cli_runs import SMALL, Draw, Run, bundled_tensors, mask, photo

import ldm_core
from ldm_core.cli import model
from ldm_core.loading.load import bundled_model

WEIGHT = "model.diffusion_model.middle_block.0.in_layers.2.bias"


# Bad input


def bad_inputs() -> dict[str, tuple[str, str]]:
    """{what: (command line, what the one line on standard error says)}; all before a model is loaded."""
    return {
        "no command": ("", "arguments are required: COMMAND"),
        "unknown command": ("paint x", "invalid choice: 'paint'"),
        "unknown option": ("txt2img x --sampler ddim", "unrecognized arguments: --sampler ddim"),
        "abbreviated option": ("txt2img x --neg y", "unrecognized arguments: --neg"),
        "no prompt": ("txt2img", "there is nothing to draw"),
        "no prompts in the file": (
            "txt2img --prompts blank.txt",
            "--prompts blank.txt: no prompts in this file",
        ),
        "no such prompts file": ("txt2img --prompts none.txt", "none.txt: No such file"),
        "prompts that are not text": ("txt2img --prompts photo.png", "photo.png: not UTF-8 text"),
        "prompts twice": ("txt2img x --prompts blank.txt", "not both"),
        "negative prompts do not fit": (
            "txt2img a b c --negative-prompt d --negative-prompt e",
            "expected one --negative-prompt, or 3, one for each prompt, got 2",
        ),
        "seeds do not fit": ("txt2img a b --seed 1,2,3", "expected one seed per image (2), got 3"),
        "seed is no number": ("txt2img x --seed one", "argument --seed: expected whole numbers"),
        "seed is negative": ("txt2img x --seed -1", "a seed must be an int in 0..2**63-1, not -1"),
        "seed is too large": ("txt2img x --seed 9223372036854775808", "a seed must be an int in 0..2**63-1"),
        "num 0": ("txt2img x --num 0", "argument --num: expected a whole number in 1..1000000, not '0'"),
        "batch size": ("txt2img x --batch-size -2", "expected a whole number in 1..1000000, not '-2'"),
        "steps is no number": (
            "txt2img x --steps many",
            "--steps: expected a whole number in 1..100000, not 'many'",
        ),
        "steps 0": ("txt2img x --steps 0", "expected a whole number in 1..100000, not '0'"),
        "steps without end": (f"txt2img x --steps {10**30}", "expected a whole number in 1..100000"),
        "clip skip": ("txt2img x --clip-skip -1", "expected a whole number in 0..1000, not '-1'"),
        "guidance": ("txt2img x --guidance nan", "argument --guidance: expected a number, not 'nan'"),
        "rescale": ("txt2img x --guidance-rescale 2", "rescale must be in [0, 1], not 2.0"),
        "eta": ("txt2img x --eta 1.5", "eta must be in [0, 1], not 1.5"),
        "eta of another": (
            "txt2img x --eta 0.5 --scheduler ddpm",
            "--eta is an option of the ddim and euler-a schedulers",
        ),
        "scheduler": ("txt2img x --scheduler dpm2", "argument --scheduler: invalid choice: 'dpm2'"),
        "size": ("txt2img x --size 64by64", "expected WIDTHxHEIGHT or one number, such as 768x512"),
        "size 0": ("txt2img x --size 0", "each in 1..65536, not '0'"),
        "size without end": ("txt2img x --size 64x65537", "each in 1..65536, not '64x65537'"),
        "dtype": ("txt2img x --dtype float8", "argument --dtype: invalid choice"),
        "device": ("txt2img x --device gpu", "--device gpu cannot be used here"),
        "device without numbers": ("txt2img x --device meta", "--device meta cannot be used here"),
        "output folder": ("txt2img x -o none", "--output none: expected an existing folder"),
        "output folder with a slash": (
            "txt2img x -o photo.png/",
            "--output photo.png/: a file of this name already exists",
        ),
        "folder of the output": ("txt2img x -o none/a.png", "cannot write into none: No such file"),
        "file as a folder": ("txt2img x -o photo.png/a.png", "cannot write into photo.png"),
        "output is no PNG": ("txt2img x -o a.jpg", "or a file name that ends in .png"),
        "two in one file": ("txt2img x --num 2 -o a.png", "2 pictures do not fit in one file"),
        "no image": ("img2img x", "img2img needs --image FILE"),
        "no mask": ("inpaint x --image photo.png", "inpaint needs --mask FILE"),
        "image is missing": ("img2img x --image none.png", "none.png: No such file"),
        "image is a folder": ("img2img x --image .", ".: Is a directory"),
        "image is no picture": (
            "img2img x --image blank.txt",
            "blank.txt: not a picture in one of the formats",
        ),
        "image is cut": ("img2img x --image cut.png", "cut.png: the picture cannot be decoded"),
        "mask of another size": (
            "inpaint x --image photo.png --mask small.png --size 32",
            "the mask and the image must have the same size, got 32×16 and 64×64 pixels",
        ),
        "from nowhere": ("txt2img --from none.png", "none.png: No such file"),
        "from no PNG": ("txt2img --from blank.txt", "blank.txt: not a PNG file"),
        "from a bare PNG": ("txt2img --from photo.png", "photo.png: a PNG file without a recipe"),
        "inspect nothing": ("inspect none.ckpt", "none.ckpt: no such file"),
        "inspect a folder": ("inspect .", ".: not a diffusers folder"),
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

    monkeypatch.setattr(model, "load", load)
    result = run(*shlex.split(command))
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert result.err[0].startswith("ldm-core: error: ")
    assert message in result.err[0]
    assert sorted(os.listdir()) == before


# These need the model: what it can do is not known before.
MODEL_DEPENDENT = {
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
        ("half", "truncated"),
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
    assert "contains no averaged (EMA) weights" in result.err[0]


def test_the_wrong_command_for_a_recipe(draw: Draw, run: Run) -> None:
    draw("img2img", "x", "--image", photo(), "--strength", "0.5", "-o", "a.png")
    result = run("txt2img", "--from", "a.png")
    assert result.err == ["ldm-core: error: a.png was drawn with img2img; use ldm-core img2img --from"]
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

    monkeypatch.setattr(ldm_core.Sampler, "sample", fail)
    result = run("txt2img", "x", "--device", "cpu")
    assert (result.status, result.out, len(result.err)) == (1, [], 1)
    assert "out of memory; try a smaller --size or --batch-size" in result.err[0]


def test_a_defect_is_not_taken_for_bad_input(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(ldm_core.Sampler, "sample", fail)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run("txt2img", "x", "--device", "cpu")
