"""The command line: bad inputs of models of other inputs than prompts end in one line, before any step."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.cli_runs import Run, mask, photo

import ldm_core
from ldm_core.cli import model
from ldm_core.recipe import Recipe, SourceFile, write_png

Zoo = Callable[[str], str]

# What a model takes: the command line, in which MODEL is a model of this kind, and the end of the error.
MISFITS = [
    ("class", "sample MODEL", "this model takes class labels: ldm-core sample FILE --class NAME|NUMBER"),
    (
        "class",
        "sample MODEL --class 1 --map map.png --noise-level 3",
        "--noise-level, --map: not taken by this model; this model takes class labels: ldm-core sample FILE "
        "--class NAME|NUMBER",
    ),
    ("class", "sample MODEL --class 1 --prompt cat", "--prompt: not taken by this model; this model takes"),
    ("class", "sample MODEL --class 1 --negative-prompt cat", "--negative-prompt: not taken by this model"),
    ("class", "sample MODEL --class 1001", "expected --class as one or several class labels in 0..1000"),
    ("class", "sample MODEL --class hen", "the class 'hen' needs --names FILE"),
    ("class", "sample MODEL --class hen --names names.txt", "no class with the name 'hen'"),
    ("class", "txt2img cat --model MODEL", "txt2img cannot draw with this model; this model takes class"),
    ("class", "img2img cat --image photo.png --model MODEL", "img2img cannot draw with this model; this"),
    ("class", "upscale MODEL --image photo.png", "upscale cannot draw with this model; this model takes cla"),
    ("class", "sample MODEL --class 1 --size 100", "height must be a positive multiple of 8 pixels"),
    ("class", "sample MODEL --class 1 --clip-skip 1", "clip_skip requires a text encoder"),
    ("class", "sample MODEL --class 1 --embedding clip.safetensors", "expected a model with an"),
    ("class-unguided", "sample MODEL --class 1 --guidance 3", "--guidance 3: this model has no guidance"),
    ("unconditional", "sample MODEL --class 1", "this model takes no inputs: ldm-core sample FILE --number"),
    ("unconditional", "sample MODEL --guidance 0", "--guidance 0: this model has no guidance; expected 1"),
    ("layout", "sample MODEL --class 1", "this model takes layouts: ldm-core sample FILE --layout FILE.json"),
    ("layout", "sample MODEL --layout boxes.json", "the class 'cat' needs --names FILE"),
    ("layout", "sample MODEL --layout boxes.json --names names.txt", "unknown label 'cat'; expected one of"),
    ("layout", "sample MODEL --layout 31.json", "too many boxes for the sequence: expected at most 30, got"),
    ("layout", "sample MODEL --layout nan.json", "expected x, y, width and height as four finite numbers"),
    ("map", "sample MODEL --map photo.png", "images of one class number per pixel (mode P or L), got the mo"),
    ("map", "sample MODEL --map deep.png", "expected classes in 0..5 in --map, got also 1000"),
    ("map", "sample MODEL --map map.png --size 64", "--size: the inputs determine the size here; this model"),
    ("map", "sample MODEL --map odd.png", "height must be a positive multiple of 8 pixels, not 12"),
    ("sr", "txt2img cat --model MODEL", "this model takes a small picture: ldm-core upscale FILE --image FI"),
    ("sr", "upscale MODEL --image photo.png --prompt x", "--prompt: not taken by this model; this model"),
    ("x4", "upscale MODEL", "takes a small picture and a prompt: ldm-core upscale FILE --image FILE"),
    ("x4", "upscale MODEL --image photo.png --noise-level 350", "noise_level must be an int in 0..349, not"),
    ("depth", "sample MODEL --image photo.png", "a depth map and a prompt: ldm-core sample FILE --depth FIL"),
    ("depth", "sample MODEL --depth photo.png", "grey PIL image, got an image of mode RGB"),
    ("depth", "sample MODEL --depth nan.tif", "expected finite depth values, got NaN or infinity"),
    ("retrieval", "sample MODEL --embeddings clip.safetensors", "as embeddings in a floating-point tensor ("),
    ("unclip", "sample MODEL --image photo.png", "ldm-core sample FILE --embeddings FILE.safetensors"),
    ("unclip", "sample MODEL --embeddings clip.safetensors", "expected vectors of 16 numbers"),
    ("inpainting", "sample MODEL --image photo.png", "no text: ldm-core inpaint --model FILE --image FILE -"),
    ("inpainting", "txt2img cat --model MODEL", "txt2img cannot draw with this model; this model takes a pi"),
    (
        "inpainting",
        "inpaint cat --model MODEL --image photo.png --mask mask.png",
        "expected no prompt: this model takes a picture and a mask, and no text: ldm-core inpaint",
    ),
]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photo()
    mask()
    Image.new("P", (64, 64), 3).save("map.png")
    Image.new("L", (64, 12), 3).save("odd.png")
    Image.fromarray(np.full((64, 64), 1000, np.uint16)).save("deep.png")
    Image.fromarray(np.full((64, 64), np.nan, np.float32)).save("nan.tif")
    save_file({"e": torch.ones(2, 3, 8)}, "clip.safetensors")
    box = [1, 0.1, 0.1, 0.5, 0.5]
    Path("boxes.json").write_text(json.dumps([["cat", *box[1:]]]))
    Path("31.json").write_text(json.dumps([box] * 31))
    Path("nan.json").write_text("[[1, NaN, 0.1, 0.5, 0.5]]")
    Path("names.txt").write_text("tench\ngoldfish\n")


@pytest.mark.parametrize(("kind", "command", "message"), MISFITS, ids=[" ".join(one[:2]) for one in MISFITS])
def test_what_a_model_does_not_take(
    run: Run, zoo: Zoo, files: None, monkeypatch: pytest.MonkeyPatch, kind: str, command: str, message: str
) -> None:
    def step(*_: Any) -> None:
        raise AssertionError("a step was made")

    monkeypatch.setattr(ldm_core.unet.UNet, "forward", step)
    result = run(*shlex.split(command.replace("MODEL", zoo(kind))), "-o", "new/")
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert message in result.err[0]
    assert len(result.err[0]) < 400
    assert not os.path.exists("new")


def bad_files() -> None:
    Path("empty").write_text("")
    Path("blank").write_text("a\n\nb\n")
    Path("long").write_text("a" * 1001)
    Path("bytes").write_bytes(b"\xff\xfe")
    for name, size in (("huge", 2**30), ("large", 2**20 + 1)):
        with open(name, "wb") as file:
            file.truncate(size)  # a sparse file
    Path("deep.json").write_text("[" * 100_000)
    Path("object.json").write_text('{"label": 1}')
    Path("many.json").write_text(json.dumps([[1, 0, 0, 1, 1]] * 1001))
    Path("digits.json").write_text(f"[[{'9' * 5000}, 0, 0, 1, 1]]")
    Path("short.json").write_text("[[1, 0, 0, 1]]")
    Path("keys.json").write_text('[{"label": 1, "x": 0, "y": 0, "width": 1, "height": 1, "z": 1}]')
    Path("types.json").write_text('[[1, {"a": []}, 0, 1, 1]]')
    Path("label.json").write_text("[[[1], 0, 0, 1, 1]]")
    Path("wide.json").write_text(f"[[1, {10**400}, 0, 1, 1]]")
    photo("photo.png")
    save_file({"a": torch.ones(1, 1, 16), "b": torch.ones(1, 1, 16)}, "two.safetensors")
    save_file({"a": torch.ones(1, 16)}, "flat.safetensors")
    save_file({"a": torch.full((1, 1, 16), torch.nan)}, "nan.safetensors")
    save_file({"a": torch.ones(1, 1, 16, dtype=torch.long)}, "whole.safetensors")
    save_file({"a": torch.zeros(0, 1, 16)}, "none.safetensors")
    save_file({"a": torch.zeros(1, 1, 16)}, "zeros.safetensors")


BAD_FILES = [
    ("class", "--class a --names huge", "has 1,073,741,824 bytes, more than 1,048,576"),
    ("class", "--class a --names large", "has 1,048,577 bytes, more than 1,048,576"),
    ("class", "--class a --names empty", "--names empty: expected one name per line; line 1 is empty"),
    ("class", "--class a --names blank", "--names blank: expected one name per line; line 2 is empty"),
    ("class", "--class a --names long", "line 1 has 1,001 letters, more than 1,000"),
    ("class", "--class a --names bytes", "--names bytes: not UTF-8 text (byte 0)"),
    ("class", "--class a --names nowhere", "nowhere: No such file or directory"),
    ("layout", "--layout huge", "has 1,073,741,824 bytes, more than 1,048,576"),
    ("layout", "--layout deep.json", "--layout deep.json: not valid JSON"),
    ("layout", "--layout object.json", "expected a list of up to 1000 objects [label, x, y, width, height],"),
    ("layout", "--layout many.json", "expected a list of up to 1000 objects [label, x, y, width, height], g"),
    ("layout", "--layout digits.json", "a number of 5,000 digits"),
    ("layout", "--layout short.json", "object 0: expected an object as (label, x, y, width, height), got"),
    ("layout", "--layout keys.json", "object 0: expected an object with the keys label, x, y, width, height"),
    ("layout", "--layout types.json", "expected x, y, width and height as four finite numbers, got"),
    ("layout", "--layout wide.json", "expected x, y, width and height as four finite numbers, got"),
    ("layout", "--layout label.json", "expected a class number in 0..8190, got [1]"),
    ("layout", "--layout .", ".: Is a directory"),
    ("map", "--map huge", "--map huge: not a picture in one of the formats"),
    ("map", "--map empty", "--map empty: not a picture in one of the formats"),
    ("depth", "--depth empty", "--depth empty: not a picture in one of the formats"),
    ("sr", "--image empty", "--image empty: not a picture in one of the formats"),
    ("retrieval", "--embeddings empty", "empty: "),
    ("retrieval", "--embeddings photo.png", "photo.png: "),
    ("retrieval", "--embeddings .", ".: Is a directory"),
    ("retrieval", "--embeddings two.safetensors", "got (1, 1, 16), (1, 1, 16)"),
    ("retrieval", "--embeddings flat.safetensors", "expected one tensor (B, k, width), B in 1..1000000, got"),
    ("retrieval", "--embeddings nan.safetensors", "expected finite numbers, got torch.float32 or NaN or inf"),
    ("retrieval", "--embeddings whole.safetensors", "expected finite numbers, got torch.int64 or NaN"),
    ("retrieval", "--embeddings none.safetensors", "got (0, 1, 16)"),
    ("retrieval", "--embeddings zeros.safetensors", "to be finite, with lengths above 0, got NaN, infinity"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options", "message"), BAD_FILES, ids=[one[1] for one in BAD_FILES])
def test_bad_files_end_in_one_line(run: Run, zoo: Zoo, kind: str, options: str, message: str) -> None:
    bad_files()
    result = run("sample", zoo(kind), *options.split(), "-o", "new/")
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert message in result.err[0]
    assert len(result.err[0]) < 400


def test_many_names_are_searched_for_similar_ones_in_time(run: Run, zoo: Zoo) -> None:
    lines = (",".join(f"{line}x{part}" for part in range(120)) for line in range(1000))
    Path("names.txt").write_text("\n".join(lines))
    start = time.process_time()
    result = run("sample", zoo("class"), "--class", "zzzzqqq1x", "--names", "names.txt")
    assert "there is no class with the name 'zzzzqqq1x'" in result.err[0]
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample", "sample needs the FILE of a model, or --from FILE.png"),
        ("upscale --image a.png", "upscale needs the FILE of a model"),
        ("sample m --class 1 --class 2 --prompt a --prompt b --prompt c", "expected 1 or 3 of --class, as o"),
        ("sample m --noise-level -1", "argument --noise-level: expected a whole number in 0..100000, not '-"),
        ("sample m --number 0", "expected a whole number in 1..1000000, not '0'"),
        ("upscale m --class 1", "unrecognized arguments: --class 1"),
        ("sample m --layout nowhere.json", "nowhere.json: No such file or directory"),
        ("inpaint --image a.png --mask b.png", "there is nothing to draw; give a prompt, --prompts FILE"),
        ("sample nowhere", "nowhere"),
    ],
)  # fmt: skip
def test_bad_options_end_in_one_line(run: Run, command: str, message: str) -> None:
    result = run(*shlex.split(command))
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert message in result.err[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("option", ["--layout", "--names", "--map", "--image", "--depth", "--embeddings"])
def test_pipes_and_devices_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    os.mkfifo("pipe")
    monkeypatch.setattr(model, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    for place in ("pipe", "/dev/zero"):
        result = run("sample", "m.safetensors", option, place)
        assert (result.status, len(result.err)) == (2, 1)
        assert "not a regular file" in result.err[0]


def stranger(path: str, kind: str, **changes: Any) -> str:
    recipe = Recipe(
        task="sample",
        prompt="",
        seed=1,
        steps=2,
        width=32,
        height=32,
        guidance_scale=1,
        scheduler="DDIM",
        model=SourceFile("m", "0" * 64, kind),
        versions={"ldm_core": "0"},
    )
    write_png(Image.new("RGB", (8, 8)), path, replace(recipe, **changes))
    return path


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("class", {"class_label": "a", "class_names": {"a": 10**30}}, "expected the labels of names"),
        ("class", {"class_label": "a"}, "the class 'a' needs --names FILE"),
        ("class", {"class_label": -1}, "class labels in 0..1000"),
        ("layout", {"layout": ({"label": "a", "x": 0, "y": 0, "width": 1, "height": 1},)}, "needs --names"),
        ("map", {"map": SourceFile("m.png", "", "/etc/passwd")}, "only with --trust-paths"),
        ("sr", {"task": "upscale", "map": SourceFile("m.png", "", "x.png")}, "only with --trust-paths"),
        ("unconditional", {"guidance_scale": 2}, "this model has no guidance"),
        ("class", {"task": "upscale"}, "was drawn with upscale; use ldm-core upscale --from"),
    ],
)  # fmt: skip
def test_a_strangers_recipe_ends_in_one_line(
    run: Run, zoo: Zoo, kind: str, changes: dict[str, Any], message: str
) -> None:
    command = "upscale" if kind == "sr" else "sample"
    result = run(command, "--from", stranger("a.png", zoo(kind), **changes), "-o", "b.png", "-q")
    assert (result.status, result.out, len(result.err)) == (2, [], 1)
    assert message in result.err[0]
    result = run("sample", "--from", stranger("c.png", "/nowhere/m", class_label=1))
    assert result.err[0].endswith("not found at '/nowhere/m': give it with FILE")
