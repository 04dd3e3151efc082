"""The examples that need a model or data of their own, with small random models and a few pictures."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.small_models import WIDTH, small_model
from support.tiny_clip import tiny_clip

import ldm_core
from ldm_core.conditioners import Unclip
from ldm_core.images import tensor_to_pil

EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = ["--steps", "2"]
# The kind of small model, its arguments, and the file that it writes.
RUNS = {
    "unconditional": ("unconditional", ["--number", "4"], "unconditional.png"),
    "class_conditional": ("class", ["207", "3"], "classes.png"),
    "layout": ("layout", [], "layout.png"),
    "semantic_map": (
        "map",
        ["--classes", "0", "1", "2", "3", "--width", "32", "--height", "16"],
        "map.png",
    ),
    "super_resolution": ("sr", ["picture.png"], "larger.png"),
    "ldm_inpainting": ("inpainting", ["picture.png"], "removed.png"),
    "depth_to_image": ("depth", ["picture.png", "a statue", "--map", "picture.png"], "depth.png"),
    "editing": ("edit", ["picture.png", "make it winter", "--image-scales", "1.5"], "edited.png"),
    "boxes": ("boxes", [], "boxes.png"),
}


def run(script: Path, *options: str) -> None:
    arguments = sys.argv
    sys.argv = [script.name, *options]
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = arguments


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", RUNS)
def test_a_task(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kind, options, output = RUNS[name]
    ldm_core.save(small_model(kind), "model.safetensors")
    tensor_to_pil(torch.rand(1, 3, 32, 32))[0].save("picture.png")
    run(EXAMPLES / "tasks" / f"{name}.py", "model.safetensors", *options, *STEPS)
    with Image.open(tmp_path / output) as picture:
        assert min(picture.size) >= 16


def test_retrieval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ldm_core.save(small_model("retrieval"), "model.safetensors")
    clip = tiny_clip()
    assert clip.config.text_encoder.projection_dim == WIDTH
    clip.save("clip.safetensors")
    Path("pictures").mkdir()
    for k in range(3):
        tensor_to_pil(torch.rand(1, 3, 32, 32))[0].save(f"pictures/{k}.png")
    options = ["clip.safetensors", "pictures", "a ship", "--neighbours", "2"]
    run(EXAMPLES / "tasks" / "retrieval.py", "model.safetensors", *options, *STEPS)
    with Image.open("retrieval.png") as picture:
        assert picture.width > 3 * 16


def test_image_variation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_model("unclip")
    conditioner = Unclip(model.conditioner.text, tiny_clip().image_encoder, model.conditioner.config)
    ldm_core.save(replace(model, conditioner=conditioner), "model.safetensors")
    for name in ("one.png", "two.png"):
        tensor_to_pil(torch.rand(1, 3, 40, 40))[0].save(name)
    options = ["one.png", "two.png", "--weights", "0.3", "0.7", "--noise-level", "100"]
    run(EXAMPLES / "tasks" / "image_variation.py", "model.safetensors", *options, *STEPS)
    with Image.open("variations.png") as picture:
        assert picture.width > 3 * 16


def test_a_panorama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(EXAMPLES / "tasks" / "panorama.py", "--width", "192", *STEPS)
    with Image.open(tmp_path / "panorama.png") as picture:
        assert picture.size == (192, 128)


@pytest.mark.parametrize("name", [path.stem for path in sorted((EXAMPLES / "tasks").glob("*.py"))])
def test_an_example_is_short_and_says_what_it_shows(name: str) -> None:
    text = (EXAMPLES / "tasks" / f"{name}.py").read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert len(text.splitlines()) < 80


def data_set(folder: Path) -> None:
    """Ten pictures of coloured squares, as examples/train_emoji/prepare.py writes them."""
    folder.mkdir(parents=True)
    rows = []
    for k in range(10):
        tensor_to_pil(torch.rand(1, 3, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3))[0].save(
            folder / f"{k}.png"
        )
        rows.append({"file_name": f"{k}.png", "text": "square", "group": f"group {k % 2}"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.mark.slow  # two steps of a network as large as the bundled model's
def test_a_control_is_trained(tmp_path: Path) -> None:
    for part in ("train", "held-out"):
        data_set(tmp_path / "data" / part)
    runs = tmp_path / "runs"
    run(
        EXAMPLES / "train_controlnet.py",
        str(tmp_path / "data"),
        str(runs),
        "--steps",
        "2",
        "--batch-size",
        "2",
    )
    net = ldm_core.load_control(runs / "edges.safetensors", model=ldm_core.load())
    assert any(conv.weight.any() for conv in net.zero_convs)
    with Image.open(runs / "edges.png") as picture:
        assert picture.width > 10 * 96


@pytest.mark.slow  # 15 s
def test_small_models_are_trained(tmp_path: Path) -> None:
    """Two steps of every stage on ten pictures; the files load, and draw what they should."""
    data_set(tmp_path / "data" / "train")
    steps = [*STEPS, "--autoencoder-steps", "2"]
    run(EXAMPLES / "train_zoo.py", str(tmp_path / "data"), str(tmp_path / "runs"), *steps)
    options = {"steps": 1, "output": "tensor"}
    for task, inputs in (
        ("unconditional", None),
        ("classes", 1),
        ("maps", torch.zeros(1, 64, 64, dtype=torch.long)),
        ("upscaler", torch.rand(1, 3, 16, 16)),
    ):
        path = tmp_path / "runs" / f"{task}.safetensors"
        assert path.stat().st_size < 4e6
        assert ldm_core.Sampler(ldm_core.load(path)).sample(inputs, **options).shape == (1, 3, 64, 64)
