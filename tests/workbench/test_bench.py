"""The workbench: what each method draws, what its pictures carry, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.small_models import small_model
from support.tiny_clip import tiny_clip

import ldm_core
from ldm_core import Sampler, Windows
from ldm_core.recipe import Noises, source_file
from ldm_core.workbench import Grid, Picture, Workbench, mixed_noise


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_a_grid_is_what_the_sampler_draws(bench: Workbench, grid: Grid) -> None:
    drawn = bench.sampler.txt2img(
        "a cat", "dog", steps=1, guidance_scale=3, num_images=4, seed=7, width=36, height=24
    )
    assert [image.tobytes() for image in grid.images] == [image.tobytes() for image in drawn]
    assert [picture.recipe.seed for picture in grid] == [7, 8, 9, 10]
    recipe = grid.pick(2).recipe
    assert (recipe.task, recipe.prompt, recipe.negative_prompt) == ("imagine", "a cat", "dog")
    assert recipe.noises == Noises((((8, 1.0),),))
    assert bench.imagine("a cat").pick(1).recipe.noises is not None  # with a random seed


def test_a_grid_in_a_file_is_the_grid(grid: Grid, tmp_path: Path) -> None:
    grid.save(tmp_path / "grid.png")
    again = Grid.open(tmp_path / "grid.png")
    assert [picture.recipe for picture in again] == [picture.recipe for picture in grid]
    assert [image.tobytes() for image in again.images] == [image.tobytes() for image in grid.images]
    grid.pick(3).save(tmp_path / "one.png")
    one = Picture.open(tmp_path / "one.png")
    assert (one.recipe, one.image.tobytes()) == (grid.pick(3).recipe, grid.pick(3).image.tobytes())
    with pytest.raises(ValueError, match="a grid of 4 pictures; give the number of one of them"):
        Picture.open(tmp_path / "grid.png")


def test_files_that_are_no_grids_are_refused(grid: Grid, tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    ldm_core.recipe.write_png(grid.images[0], path, grid.recipe)
    with pytest.raises(ValueError, match="4 pictures of 36×24, which fill 96×100 pixels, not 36×24"):
        Grid.open(path)
    grid.images[0].save(path)
    with pytest.raises(ValueError, match="a PNG file without a recipe"):
        Grid.open(path)
    with pytest.raises(ValueError, match="a grid needs at least one picture, got none"):
        Grid(())
    other = replace(grid.pick(1), image=Image.new("RGB", (8, 8)))
    with pytest.raises(ValueError, match="pictures of one size"):
        Grid((grid.pick(1), other))
    for number in (5, 0, -1):
        with pytest.raises(ValueError, match=rf"there is no picture {number}: the grid has pictures 1 to 4"):
            grid.pick(number)


def test_sheets_of_any_number_show_every_picture(grid: Grid) -> None:
    for count in (1, 2, 3, 5):
        sheet = Grid((grid.pictures * 2)[:count]).sheet()
        columns = math.ceil(math.sqrt(count))
        assert sheet.size == (8 + columns * 44, math.ceil(count / columns) * 46 + 8)


def test_mixed_noise_is_normal_and_between_its_seeds() -> None:
    shape = (1, 4, 64, 64)
    one, two = (mixed_noise([(seed, 1.0)], shape) for seed in (1, 2))
    assert torch.equal(one, torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(mixed_noise([(1, 1.0), (2, 0.0)], shape), one)
    torch.testing.assert_close(mixed_noise([(1, 1.0), (2, 1.0)], shape), two)
    for amount in (0.2, 0.5, 0.9):
        mixed = mixed_noise([(1, 1.0), (2, amount)], shape)
        assert abs(float(mixed.std()) - 1) < 0.03  # 16,384 numbers: five standard errors
        cosine = float((mixed * one).mean())
        assert abs(cosine - math.cos(amount * math.pi / 2)) < 0.05


def test_variations_start_from_mixed_noise(bench: Workbench, grid: Grid) -> None:
    weak, strong = (bench.vary(grid.pick(2), how, seed=20) for how in ("weak", "strong"))
    assert [picture.recipe.noises for picture in weak] == [
        Noises((((8, 1.0), (20, 0.1)),)),
        Noises((((8, 1.0), (21, 0.1)),)),
    ]
    original = pixels(grid.pick(2).image)
    near, far = (abs(pixels(one.pick(1).image) - original).mean() for one in (weak, strong))
    assert 0 < near < far
    again = bench.vary(weak.pick(1), "weak", seed=30).pick(1)
    assert again.noises.mixtures == (((8, 1.0), (20, 0.1), (30, 0.1)),)
    noise = mixed_noise(again.noises.mixtures[0], (1, 4, 12, 18))
    options: dict[str, Any] = {"steps": 1, "guidance_scale": 3, "seed": 8, "width": 36, "height": 24}
    [drawn] = bench.sampler.txt2img("a cat", "dog", noise=noise, **options)
    assert abs(pixels(drawn) - pixels(again.image)).max() <= 1


@pytest.mark.one_in(2)
@pytest.mark.parametrize("scheduler", [ldm_core.EulerAncestral(), ldm_core.DDIM()])
def test_a_variation_of_no_amount_is_the_picture(
    bench: Workbench, scheduler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm_core.workbench.bench.AMOUNTS", {"weak": 0.0})
    bench.sampler.scheduler = scheduler
    picture = bench.imagine("a cat --seed 5 --chaos 30").pick(2)
    again = bench.vary(picture, "weak")
    assert max(abs(pixels(image) - pixels(picture.image)).max() for image in again.images) <= 1


def test_pictures_that_are_not_from_noise_are_varied_from_their_pixels(bench: Workbench, grid: Grid) -> None:
    wide = bench.pan(grid.pick(1), "left").pick(1)
    assert not wide.noises.alone
    varied = bench.vary(wide, "weak", seed=3).pick(1)
    [drawn] = bench.sampler.img2img("a cat", wide.image, 0.4, "dog", steps=1, guidance_scale=3, seed=3)
    assert abs(pixels(varied.image) - pixels(drawn)).max() <= 1


def test_a_picture_of_txt2img_is_from_noise(bench: Workbench, grid: Grid) -> None:
    recipe = replace(grid.pick(2).recipe, task="txt2img", noises=None)
    picture = Picture(grid.pick(2).image, recipe)
    assert picture.noises == grid.pick(2).noises
    assert not Picture(picture.image, replace(recipe, versions={})).noises.alone


def test_zooming_out_keeps_the_small_picture(bench: Workbench) -> None:
    picture = bench.imagine("a --ar 1:1 --seed 1").pick(1)
    small = pixels(picture.image.resize((16, 16), Image.Resampling.LANCZOS))
    out = bench.zoom_out(picture, 2, "a wood --no fog --seed 4")
    for one in out:
        assert one.image.size == (32, 32)
        assert (pixels(one.image)[8:24, 8:24] == small).all()
    assert (out.pick(1).recipe.prompt, out.pick(1).recipe.negative_prompt) == ("a wood", "fog")
    assert abs(pixels(out.images[0])[:8] - pixels(out.images[1])[:8]).mean() > 1


@pytest.mark.parametrize(
    ("direction", "size", "kept"),
    [
        ("left", (52, 24), (slice(0, 24), slice(16, 52))),
        ("right", (52, 24), (slice(0, 24), slice(0, 36))),
        ("up", (36, 36), (slice(12, 36), slice(0, 36))),
        ("down", (36, 36), (slice(0, 24), slice(0, 36))),
    ],
)
def test_panning_keeps_the_picture(
    bench: Workbench, grid: Grid, direction: Any, size: tuple[int, int], kept: tuple[slice, slice]
) -> None:
    bench.count = 1
    picture = grid.pick(1)
    wide = bench.pan(picture, direction).pick(1)
    assert wide.image.size == size == (wide.recipe.width, wide.recipe.height)
    assert (pixels(wide.image)[kept] == pixels(picture.image)).all()


def test_upscaling_is_a_second_pass(bench: Workbench, grid: Grid) -> None:
    picture = grid.pick(1)
    large = bench.upscale(picture, 2, 0.5)
    twice = picture.image.resize((72, 48), Image.Resampling.LANCZOS)
    [drawn] = bench.sampler.img2img("a cat", twice, 0.5, "dog", steps=1, guidance_scale=3, seed=7)
    assert large.image.tobytes() == drawn.tobytes()
    assert (large.recipe.width, large.recipe.height, large.noises.alone) == (72, 48, False)
    windows = bench.upscale(picture, 2, 0.5, Windows(24, 12))
    assert windows.image.size == (72, 48)
    assert windows.image.tobytes() != large.image.tobytes()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", ["x4", "sr"])
def test_upscaling_by_an_upscaler(bench: Workbench, grid: Grid, kind: str) -> None:
    bench.upscaler = Sampler(small_model(kind))
    large = bench.upscale(grid.pick(1))
    assert large.image.size == (144, 96) == (large.recipe.width, large.recipe.height)


def test_chaos_is_the_guidance_without_and_more_differences_with(bench: Workbench) -> None:
    bench.steps = 2  # one step of DDIM is its last
    quiet, loud = (bench.imagine(f"a cat --seed 1 --chaos {amount}") for amount in (1, 100))
    plain = bench.imagine("a cat --seed 1")
    changes = [abs(pixels(one.images[0]) - pixels(plain.images[0])).mean() for one in (quiet, loud)]
    assert changes[0] < changes[1]
    again = bench.imagine("a cat --seed 1 --chaos 100")
    assert [image.tobytes() for image in again.images] == [image.tobytes() for image in loud.images]
    bench.count = 1
    alone = bench.imagine("a cat --seed 2 --chaos 100")
    assert abs(pixels(alone.images[0]) - pixels(loud.images[1])).max() <= 1


def test_tiles_are_drawn_and_enlarged_with_circular_padding(bench: Workbench) -> None:
    picture = bench.imagine("a --tile --seed 1").pick(1)
    with ldm_core.seamless(bench.sampler.model):
        [drawn] = bench.sampler.txt2img("a", steps=1, guidance_scale=3, seed=1)
    assert abs(pixels(picture.image) - pixels(drawn)).max() <= 1
    assert picture.noises.tile
    assert bench.vary(picture, seed=1).pick(1).noises.tile
    assert bench.upscale(picture).noises.tile
    assert bench.imagine("a --seed 1").pick(1).image.tobytes() != picture.image.tobytes()
    with pytest.raises(ValueError, match="windows would show in a picture that repeats"):
        bench.upscale(picture, windows=Windows(8))


def test_a_picture_in_the_prompt_is_where_another_model_starts(bench: Workbench) -> None:
    start = Image.new("RGB", (64, 40), "red")
    for flags, strength in (("", 0.5), ("--iw 0.5", 2 / 3), ("--iw 2", 1 / 3)):
        picture = bench.imagine(f"a --seed 1 {flags}", start).pick(1)
        cropped = start.crop((12, 0, 52, 40)).resize((32, 32))
        [drawn] = bench.sampler.img2img("a", cropped, strength, steps=1, guidance_scale=3, seed=1)
        assert abs(pixels(picture.image) - pixels(drawn)).max() <= 1
        assert not picture.noises.alone
    ignored = bench.imagine("a --seed 1 --iw 0", start).images
    assert ignored[0].tobytes() == bench.imagine("a --seed 1").images[0].tobytes()


def test_blending_is_symmetric_and_has_its_ends(bench: Workbench, grid: Grid) -> None:
    pair = [grid.pick(1), bench.imagine("a dog --seed 1 --ar 3:2").pick(1)]
    shape = "--seed 3 --ar 3:2"
    one, other = bench.blend(pair, shape).images[0], bench.blend(pair[::-1], shape).images[0]
    assert abs(pixels(one) - pixels(other)).max() <= 1
    end = bench.blend(pair, shape, weights=[1, 0], strength=0.5)
    [drawn] = bench.sampler.img2img("a cat", pair[0].image, 0.5, steps=1, guidance_scale=3, seed=3)
    # img2img draws from the encoder's Gaussian, a blend takes its mean
    assert abs(pixels(end.images[0]) - pixels(drawn)).mean() < abs(pixels(one) - pixels(drawn)).mean()
    assert end.pick(1).recipe.prompt == "a cat + a dog"
    named = bench.blend([pair[0].image, pair[1].image], f"an animal {shape}")
    assert (named.pick(1).recipe.prompt, named.pick(1).noises.alone) == ("an animal", False)


def test_an_unclip_model_takes_pictures_themselves() -> None:
    model = small_model("unclip")
    with pytest.raises(ValueError, match="there is no image encoder"):
        Workbench(Sampler(model), steps=1, count=1).imagine("a", Image.new("RGB", (64, 64)))
    encoder = small_clip_of(16)
    conditioner = replace(model.conditioner, image_encoder=encoder)
    bench = Workbench(Sampler(replace(model, conditioner=conditioner)), steps=1, count=1)
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    assert not bench.imagine("a --seed 1", red).pick(1).noises.alone
    mixed = bench.blend([red, blue], "a --seed 1", weights=[0.7, 0.3]).pick(1)
    inputs = {"images": [red, blue], "weights": [0.7, 0.3], "prompt": "a"}
    [drawn] = bench.sampler.sample(inputs, steps=1, seed=1)
    assert mixed.image.tobytes() == drawn.tobytes()
    with pytest.raises(ValueError, match="an unCLIP model draws from a picture"):
        bench.imagine("a")


def small_clip_of(width: int) -> Any:
    encoder = tiny_clip().image_encoder
    assert encoder.config.projection_dim == width
    return encoder


def test_describing_ranks_words(bench: Workbench, grid: Grid) -> None:
    with pytest.raises(ValueError, match=r"needs a CLIP, with the image encoder .* --clip FILE; got none"):
        bench.describe(grid.pick(1))
    bench.clip = tiny_clip()
    ranked = bench.describe(grid.pick(1), ["a cat", "a dog", "a cat", "fire"], top=2)
    shares = bench.clip.zero_shot(grid.images[0], ["a cat", "a dog", "fire"], ["a picture of {}.", "{}"])[0]
    assert [share for _, share in ranked] == sorted(shares.tolist(), reverse=True)[:2]
    with pytest.warns(UserWarning, match="only 6 fit"):  # this CLIP is small
        assert len(bench.describe(grid.images[0])) == 5
    with pytest.raises(ValueError, match="at least one word"):
        bench.describe(grid.images[0], [])


BAD: dict[str, tuple[Callable[[Workbench, Picture], Any], str]] = {
    "no words": (lambda b, p: b.imagine("--ar 3:2"), "expected words before the flags"),
    "ratio": (lambda b, p: b.imagine("a --ar 0:1"), "not 0:1"),
    "iw": (
        lambda b, p: b.imagine("a --iw 1"),
        "--iw is the weight of a picture in the prompt, and there is none",
    ),
    "image": (lambda b, p: b.imagine("a", "cat.png"), "expected a picture as a PIL image, not str"),
    "vary": (lambda b, p: b.vary(p, "much"), "vary takes 'weak' or 'strong', not 'much'"),
    "zoom": (lambda b, p: b.zoom_out(p, 1), "zoom-out takes a factor above 1, up to 16, not 1"),
    "zoomed away": (lambda b, p: b.zoom_out(p, 16), "leaves nothing of a side of 24 pixels"),
    "zoom nan": (lambda b, p: b.zoom_out(p, math.nan), "zoom-out takes a factor"),
    "pan": (lambda b, p: b.pan(p, "west"), "pan takes one of left, right, up, down, not 'west'"),
    "pan amount": (lambda b, p: b.pan(p, "left", 0), "pan takes an amount above 0, up to 4, not 0"),
    "flags": (lambda b, p: b.pan(p, "left", prompt="a --tile"), "takes the flags --no and --seed only"),
    "scale": (lambda b, p: b.upscale(p, 99), r"upscale takes a scale in 1\.\.16, not 99"),
    "one": (lambda b, p: b.blend([p]), "blend takes two pictures or more, got 1"),
    "weights": (lambda b, p: b.blend([p, p], weights=[1]), "blend takes 2 weights of 0 or more"),
    "zero": (lambda b, p: b.blend([p, p], weights=[0, 0]), "with a positive sum"),
    "blend iw": (lambda b, p: b.blend([p, p], "a --iw 1"), "a blend has the weights of its pictures"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_refused_in_one_line(bench: Workbench, grid: Grid, name: str) -> None:
    call, message = BAD[name]
    bench.on_step = pytest.fail
    with pytest.raises(ValueError, match=message) as error:
        call(bench, grid.pick(1))
    assert len(str(error.value).splitlines()) == 1


def test_other_models_and_counts_are_refused(tiny: ldm_core.LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="needs a model of prompts, not one with ClassEmbedder"):
        Workbench(Sampler(small_model("class")))
    for count in (0, 65):
        with pytest.raises(ValueError, match=f"a grid has 1 to 64 pictures, not {count}"):
            Workbench(Sampler(tiny), count=count)


def test_fields_name_what_drew_a_picture(tiny: ldm_core.LatentDiffusion, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"weights")
    bench = Workbench(Sampler(tiny), steps=1, count=1, fields={"model": source_file(path), "device": "cpu"})
    recipe = bench.imagine("a").pick(1).recipe
    assert (recipe.model.name, recipe.device, recipe.guidance_scale) == ("model.bin", "cpu", 7.5)
