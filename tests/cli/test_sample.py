"""The command line: drawing with models of inputs other than prompts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.cli_runs import Draw, Result, Run, mask, photo, pixels
from support.small_models import small_model

import ldm_core
from ldm_core.cli.kinds import KINDS
from ldm_core.cli.sample_inputs import SampleInputs
from ldm_core.conditioners.imagenet import imagenet_classes
from ldm_core.conditioners.instruction import fitted
from ldm_core.guidance import ImageAndTextGuidance
from ldm_core.recipe import Recipe, read_recipe

Zoo = Callable[[str], str]

DOG = {"label": "dog", "x": 0, "y": 0, "width": 1, "height": 1, "group": True}
BOXES = [["cat", 0.1, 0.2, 0.5, 0.5], DOG]
NAMES = ["tree", "cat", "dog", "red car"]


def class_map(path: str = "map.png", size: tuple[int, int] = (32, 48), mode: str = "P") -> str:
    values = (np.arange(size[0] * size[1]) % 6).astype(np.uint8).reshape(size[::-1])
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    image.save(path)
    return path


def embeddings(path: str = "clip.safetensors", rows: int = 2) -> str:
    save_file({"e": torch.randn(rows, 3, 16, generator=torch.Generator().manual_seed(0))}, path)
    return path


def files() -> None:
    """All files that the commands below name, in the current folder."""
    photo(size=(16, 24))
    photo("depth.png", (48, 32), "L")
    class_map()
    embeddings()
    Path("names.txt").write_text("\n".join(NAMES) + "\n")
    Path("boxes.json").write_text(json.dumps(BOXES))


@dataclass(frozen=True)
class Case:
    kind: str
    options: str
    inputs: Callable[[], Any]  # of Sampler.sample
    command: str = "sample"
    recorded: Any = ()  # some of the recipe's fields
    guidance: float = 1.0
    size: tuple[int, int] = (32, 32)
    options_of: Any = ()  # of the sampler, as a mapping


def picture(name: str) -> Image.Image:
    return Image.open(name)


CASES = [
    Case("unconditional", "", lambda: None, size=(64, 64)),
    Case("class", "--class 3", lambda: [3], recorded={"class_label": 3}, guidance=3.0),
    Case(
        "class", "--class CAT --names names.txt", lambda: [1],
        recorded={"class_label": "CAT", "class_names": {"CAT": 1}}, guidance=3.0,
    ),
    Case("class-unguided", "--class 0", lambda: [0], size=(64, 64)),
    Case(
        "layout", "--layout boxes.json --names names.txt",
        lambda: [[(1, 0.1, 0.2, 0.5, 0.5), (2 + 4, 0, 0, 1, 1)]],
        recorded={"class_names": {"cat": 1, "dog": 2}, "class_count": 4},
    ),
    Case("map", "--map map.png", lambda: [picture("map.png")], size=(32, 48)),
    Case("sr", "--image photo.png", lambda: [picture("photo.png")], "upscale", size=(64, 96)),
    Case("sr", "--image photo.png", lambda: [picture("photo.png")], size=(64, 96)),
    Case(
        "x4", "--image photo.png --prompt fire --noise-level 7",
        lambda: [{"image": picture("photo.png"), "prompt": "fire", "noise_level": 7}],
        "upscale", {"noise_level": 7, "prompt": "fire"}, 9.0, (64, 96),
    ),
    Case(
        "x4", "--image photo.png", lambda: [{"image": picture("photo.png"), "noise_level": 20}],
        recorded={"noise_level": 20}, guidance=9.0, size=(64, 96),
    ),
    Case(
        "depth", "--depth depth.png --prompt fire",
        lambda: [{"depth": picture("depth.png"), "prompt": "fire"}], guidance=7.5, size=(48, 32),
    ),
    Case(
        "edit", "--image photo.png --prompt winter --image-guidance 1.2",
        lambda: [{"image": fitted(picture("photo.png"), 64, 16), "prompt": "winter"}],
        recorded={"image_guidance_scale": 1.2, "prompt": "winter"}, guidance=7.5, size=(48, 64),
        options_of={"guidance": ImageAndTextGuidance(1.2)},
    ),
    Case(
        "boxes", "--layout boxes.json --prompt fire --until 0.5",
        lambda: [{"boxes": BOXES, "prompt": "fire", "until": 0.5}],
        recorded={"until": 0.5, "prompt": "fire"}, guidance=7.5, size=(64, 64),
    ),
    Case("retrieval", "--embeddings clip.safetensors", lambda: clip(), guidance=5.0, size=(128, 128)),
    Case(
        "unclip", "--embeddings clip.safetensors --prompt fire",
        lambda: [{"embeddings": row, "prompt": "fire"} for row in clip()],
        guidance=10.0, size=(64, 64), recorded={"noise_level": 0, "embedding_row": 0},
    ),
]  # fmt: skip


def clip() -> torch.Tensor:
    return torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.one_in(5)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.command} {case.kind} {case.options}")
def test_pictures_are_those_of_the_library_and_come_back(draw: Draw, run: Run, zoo: Zoo, case: Case) -> None:
    files()
    paths = draw(case.command, zoo(case.kind), *case.options.split(), "--seed", "3")
    inputs = case.inputs()
    expected = ldm_core.Sampler(ldm_core.load(zoo(case.kind)), **dict(case.options_of)).sample(
        inputs, steps=2, seed=3
    )
    assert len(paths) == len(expected)
    for path, picture in zip(paths, expected):  # drawn one by one: rounding differs with the batch
        assert pixels(path).shape[:2] == case.size[::-1]
        assert np.abs(pixels(path) - np.array(picture)).max() <= (len(paths) > 1)
    recipe = read_recipe(paths[0])
    assert (recipe.task, recipe.guidance_scale, recipe.seed) == (case.command, case.guidance, 3)
    assert (recipe.width, recipe.height) == case.size
    assert recipe.model.path == zoo(case.kind)
    for field, value in dict(case.recorded).items():
        assert getattr(recipe, field) == value

    os.remove("names.txt")  # a recipe has the names that it needs
    os.remove("boxes.json")
    again = run(case.command, "--from", paths[-1], "-o", "b.png", "--trust-paths", "--device", "cpu")
    assert again == Result(0, ["b.png"], [])
    assert (pixels("b.png") == pixels(paths[-1])).all()
    assert read_recipe("b.png") == read_recipe(paths[-1])


def test_every_kind_of_conditioner_is_drawn() -> None:
    assert len({case.kind for case in CASES} - {"class-unguided"}) + len(["text", "masked"]) == len(KINDS)


def test_several_inputs_and_several_pictures_of_each(draw: Draw, zoo: Zoo) -> None:
    options = ["--class", "1", "--class", "3", "--number", "2", "--seed", "5"]
    one = draw("sample", zoo("class"), *options)
    two = draw("sample", zoo("class"), *options, "--batch-size", "3")
    recipes = [read_recipe(path) for path in one]
    assert [(r.class_label, r.seed) for r in recipes] == [(1, 5), (1, 6), (3, 7), (3, 8)]
    for a, b in zip(one, two):
        assert read_recipe(a) == read_recipe(b)
        assert np.abs(pixels(a) - pixels(b)).max() <= 1
    assert np.abs(pixels(one[0]) - pixels(one[2])).max() > 1, "the class matters"
    assert len(draw("sample", zoo("unconditional"), "--number", "3", "--batch-size", "2")) == 3


def test_a_negative_prompt_and_its_guidance(draw: Draw, zoo: Zoo) -> None:
    files()
    given = ["upscale", zoo("x4"), "--image", "photo.png", "--prompt", "a", "--prompt", "b", "--seed", "1"]
    paths = draw(*given, "--negative-prompt", "c", "--guidance", "2")
    inputs = {"image": Image.open("photo.png"), "prompt": "b"}
    sampler = ldm_core.Sampler(ldm_core.load(zoo("x4")))
    [expected] = sampler.sample([inputs], unconditional="c", guidance_scale=2, steps=2, seed=2)
    assert (pixels(paths[1]) == np.array(expected)).all()
    assert [read_recipe(path).prompt for path in paths] == ["a", "b"]


def test_inpainting_without_a_prompt(draw: Draw, run: Run, zoo: Zoo) -> None:
    given = ["inpaint", "--model", zoo("inpainting"), "--image", photo(), "--mask", mask()]
    paths = draw(*given, "--seed", "2", "--num", "2", "--batch-size", "2")
    image, white = Image.open("photo.png"), Image.open("mask.png")
    sampler = ldm_core.Sampler(ldm_core.load(zoo("inpainting")))
    expected = sampler.sample(image=image, mask=white, steps=2, seed=2, num_images=2)
    for path, picture in zip(paths, expected):
        assert (pixels(path) == np.array(picture)).all()
        assert (pixels(path) == np.array(image))[:, 32:].all()
    assert (read_recipe(paths[0]).prompt, read_recipe(paths[0]).guidance_scale) == ("", 1.0)
    again = run("inpaint", "--from", paths[1], "-o", "b.png", "--trust-paths", "--device", "cpu")
    assert again == Result(0, ["b.png"], [])
    assert np.abs(pixels("b.png") - pixels(paths[1])).max() <= 1
    [path] = draw(*given, "--strength", "0.6")
    assert read_recipe(path).strength == 0.6


@pytest.mark.parametrize(
    ("kind", "options"),
    [("class", "--class 2"), ("unconditional", ""), ("retrieval", "--embeddings clip.safetensors --num 1")],
)
def test_steps_are_shown(draw: Draw, zoo: Zoo, kind: str, options: str) -> None:
    """Latents of 3, 4 and 16 channels, with and without a codebook."""
    embeddings(rows=1)
    paths = draw("sample", zoo(kind), *options.split(), "--show-steps", "-o", "a.png")
    assert paths == ["a.png", *(os.path.join("a-steps", n) for n in ("0001.png", "0002.png", "strip.png"))]
    last, picture, strip = (pixels(paths[k]) for k in (2, 0, 3))
    assert np.abs(last - picture).mean() < 8, "the last prediction is nearly the picture"
    assert strip.shape[1] > 2 * 128, "a column for each step"


def test_no_path_stays_in_a_picture(draw: Draw, run: Run, zoo: Zoo) -> None:
    os.mkdir("private")
    photo("private/depth.png", (32, 32), "L")
    photo("private/photo.png", (32, 32))
    given = ["--depth", "private/depth.png", "--image", "private/photo.png"]
    [path] = draw("sample", zoo("depth"), *given, "--no-paths")
    [shown] = draw("sample", zoo("depth"), *given)
    assert b"private" in Path(shown).read_bytes()
    assert b"private" not in Path(path).read_bytes()
    assert read_recipe(path).depth.name == "depth.png"  # type: ignore[union-attr]
    [error] = run("sample", zoo("depth"), "--from", path).err
    assert "read only with --trust-paths, or if given as options: --image 'photo.png', --depth" in error
    again = run("sample", zoo("depth"), "--from", path, *given, "-o", "b.png", "--device", "cpu")
    assert again == Result(0, ["b.png"], [])


def test_the_recipes_files_are_read_only_if_trusted(draw: Draw, run: Run, zoo: Zoo) -> None:
    files()
    for kind, options, listed in (
        ("map", "--map map.png", "--map 'map.png'"),
        ("retrieval", "--embeddings clip.safetensors --seed 1,2", "--embeddings 'clip.safetensors'"),
    ):
        path = draw("sample", zoo(kind), *options.split())[-1]
        result = run("sample", "--from", path, "-o", "b.png")
        assert (result.status, len(result.err)) == (2, 1)
        assert result.err[0].endswith(listed)
    embeddings(rows=1)  # of another length
    result = run("sample", "--from", path, "--trust-paths", "-o", "b.png")
    assert "expected row 1 in clip.safetensors, which has 1 rows" in result.err[0]
    result = run("sample", "--from", path, "--embeddings", embeddings(rows=3), "-o", "b.png", "-q")
    assert (result.status, result.out) == (0, ["b.png"])
    assert read_recipe("b.png").embedding_row == 1


def test_options_override_a_recipe(draw: Draw, zoo: Zoo) -> None:
    draw("sample", zoo("class"), "--class", "3", "--guidance", "2", "-o", "a.png")
    [path] = draw("sample", "--from", "a.png", "--class", "1")
    first, second = read_recipe("a.png"), read_recipe(path)
    assert (second.class_label, second.guidance_scale, second.seed) == (1, 2.0, first.seed)


def test_inspect_shows_the_inputs(draw: Draw, run: Run, zoo: Zoo) -> None:
    files()
    draw("sample", zoo("layout"), "--layout", "boxes.json", "--names", "names.txt", "-o", "a.png")
    text = run("inspect", "a.png").out
    assert 'Layout: "cat (0.1, 0.2, 0.5, 0.5); dog (0, 0, 1, 1)"' in text[1]
    data = json.loads(run("inspect", "a.png", "--json").out[0])
    assert data["layout"][1] == DOG
    assert data["class_names"] == {"cat": 1, "dog": 2}


def test_ctrl_c_keeps_what_is_drawn(run: Run, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, calls = ldm_core.Sampler.sample, []

    def stops_at_the_second(self: Any, *args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(self, *args, **options)

    monkeypatch.setattr(ldm_core.Sampler, "sample", stops_at_the_second)
    result = run("sample", zoo("class"), "--class", "1", "--number", "3", "--steps", "1")
    assert (result.status, result.out) == (130, ["sample-0001.png"])
    assert result.err == ["ldm-core: interrupted; 1 of 3 pictures are complete and kept"]
    assert isinstance(read_recipe("sample-0001.png"), Recipe)


def test_a_model_that_knows_the_names_of_its_classes_needs_no_file() -> None:
    model = small_model("class")
    model.conditioner = replace(model.conditioner, names=imagenet_classes)  # type: ignore[type-var]
    given: Any = {"class": [("golden retriever", {"class_label": "golden retriever"})]}
    [subject] = SampleInputs("sample", given, None, None).subjects(model)
    assert subject.fields["class_names"] == {"golden retriever": 207}


def test_a_picture_of_odd_sides_is_enlarged_whole(draw: Draw, run: Run, zoo: Zoo) -> None:
    photo(size=(15, 21))
    [path] = draw("upscale", zoo("sr"), "--image", "photo.png", "--seed", "3")
    assert pixels(path).shape[:2] == (84, 60)
    recipe = read_recipe(path)
    assert (recipe.width, recipe.height) == (60, 84)
    again = run("upscale", "--from", path, "-o", "b.png", "--trust-paths", "--device", "cpu")
    assert again == Result(0, ["b.png"], [])
    assert (pixels("b.png") == pixels(path)).all()
