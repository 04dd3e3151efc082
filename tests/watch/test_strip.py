"""Strips and animations show the recorded latents, in order, with the first and the last step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ldm_core
from ldm_core.images import tensor_to_pil
from ldm_core.sampler import SamplerStep
from ldm_core.watch.grid import GAP, LARGEST, MARGIN, SMALLEST, make_grid, stack
from ldm_core.watch.preview import LatentPreview
from ldm_core.watch.strip import Recorder, model_decode, record_steps

STEPS, TILE = 5, 64  # the pictures are drawn with 64 x 64 pixels: a strip of tile 64 does not scale them
OPTIONS: dict[str, Any] = {"steps": STEPS, "guidance_scale": 4.0, "height": TILE, "width": TILE, "seed": 3}


@pytest.fixture(scope="module")
def recorded(bundled: ldm_core.LatentDiffusion) -> Recorder:
    return record_steps(ldm_core.Sampler(bundled), ["fire", "panda"], **OPTIONS)


@pytest.fixture
def preview() -> LatentPreview:
    return LatentPreview(torch.eye(3, 4), torch.full((3,), 0.5), factor=4)


def made_up(count: int, images: int = 1) -> list[SamplerStep]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(count, 2, images, 4, 8, 8, generator=generator)
    return [SamplerStep(i, count, 100 - i, latents[i, 0], latents[i, 1]) for i in range(count)]


def recorder_of(count: int, decode: LatentPreview, images: int = 1) -> Recorder:
    recorder = Recorder(None, decode)  # type: ignore[arg-type]
    for step in made_up(count, images):
        recorder(step)
    return recorder


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def tile_at(sheet: Image.Image, column: int, columns: int, rows_below: int) -> np.ndarray:
    """A tile of the last grid of a sheet, counted from its right and lower margins."""
    right = sheet.width - MARGIN - (columns - 1 - column) * (TILE + GAP)
    bottom = sheet.height - MARGIN - rows_below * (TILE + GAP)
    return pixels(sheet.crop((right - TILE, bottom - TILE, right, bottom)))


def test_recording_does_not_change_what_is_drawn(bundled: ldm_core.LatentDiffusion) -> None:
    sampler, recorder = ldm_core.Sampler(bundled), Recorder(bundled)
    watched = sampler.txt2img("fire", on_step=recorder, output="latent", **OPTIONS)
    assert torch.equal(watched, sampler.txt2img("fire", output="latent", **OPTIONS))
    assert [step.index for step in recorder.steps] == list(range(STEPS))
    assert torch.equal(recorder.steps[-1].latent, watched)


def test_record_is_the_sampling_of_the_same_options(
    bundled: ldm_core.LatentDiffusion, recorded: Recorder
) -> None:
    latent = ldm_core.Sampler(bundled).txt2img(["fire", "panda"], output="latent", **OPTIONS)
    assert torch.equal(recorded.steps[-1].latent, latent)
    assert recorded.captions == ("fire", "panda")
    several = record_steps(ldm_core.Sampler(bundled), "fire", steps=1, guidance_scale=1.0, num_images=2)
    assert several.captions == ("fire", "fire")


def test_a_new_run_begins_a_new_record(preview: LatentPreview) -> None:
    recorder = recorder_of(4, preview)
    for step in made_up(3):
        recorder(step)
    assert [step.total for step in recorder.steps] == [3, 3, 3]


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (9, 3, [0, 4, 8]),
        (25, 8, [0, 3, 7, 10, 14, 17, 21, 24]),
        (4, 8, [0, 1, 2, 3]),
        (4, 4, [0, 1, 2, 3]),
        (7, 2, [0, 6]),
        (7, 1, [6]),
        (1, 8, [0]),
        (1, 1, [0]),
    ],
)
def test_chosen_steps_are_even_and_hold_both_ends(
    preview: LatentPreview, total: int, count: int, expected: list[int]
) -> None:
    assert [step.index for step in recorder_of(total, preview).chosen(count)] == expected


def test_the_strip_shows_latents_above_predictions(
    bundled: ldm_core.LatentDiffusion, recorded: Recorder
) -> None:
    sheet = recorded.strip(3, tile=TILE)
    decode = model_decode(bundled)
    for column, index in enumerate([0, 2, 4]):
        step = recorded.steps[index]
        with torch.no_grad():
            latent, x0 = (tensor_to_pil(decode(x[1:]))[0] for x in (step.latent, step.x0))
        assert np.array_equal(tile_at(sheet, column, 3, rows_below=1), pixels(latent))
        assert np.array_equal(tile_at(sheet, column, 3, rows_below=0), pixels(x0))


def test_one_pair_of_rows_for_each_prompt(recorded: Recorder, bundled: ldm_core.LatentDiffusion) -> None:
    both = recorded.strip(2, tile=TILE)
    alone = Recorder(bundled, captions=("fire",))
    for step in recorded.steps:
        alone(SamplerStep(step.index, step.total, step.t, step.latent[:1], step.x0[:1]))
    one = alone.strip(2, tile=TILE)
    assert both.size == (one.width, 2 * one.height)
    assert np.array_equal(pixels(both.crop((0, 0, *one.size))), pixels(one))


def test_a_preview_spares_the_decoder(bundled: ldm_core.LatentDiffusion, preview: LatentPreview) -> None:
    recorder = Recorder(bundled, decode=preview)
    latent = torch.randn(1, 4, TILE, TILE, generator=torch.Generator().manual_seed(0))
    recorder(SamplerStep(0, 1, 1, latent, -latent))
    sheet = recorder.strip(tile=TILE)  # a latent of 64 x 64 previews to that size
    assert np.array_equal(tile_at(sheet, 0, 1, rows_below=1), pixels(preview.to_pil(latent, upscale=None)[0]))
    assert np.array_equal(
        tile_at(sheet, 0, 1, rows_below=0), pixels(preview.to_pil(-latent, upscale=None)[0])
    )


@pytest.mark.one_in(3)
@pytest.mark.parametrize("ending", ["gif", "webp", "GIF"])
def test_animations_show_every_step_and_stay_at_the_last(
    preview: LatentPreview, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"steps.{ending}"
    recorder_of(6, preview).save_animation(path, milliseconds=50, hold=900)
    with Image.open(path) as animation:
        assert animation.format == ending.upper()
        assert animation.n_frames == 6
        assert animation.info["loop"] == 0  # again and again
        durations = []
        for i in range(6):
            animation.seek(i)
            animation.load()
            durations.append(animation.info["duration"])
        last = pixels(animation)
    assert durations == [50] * 5 + [900]
    step = made_up(6)[-1]
    shown = [preview.to_pil(x, upscale=None)[0] for x in (step.latent, step.x0)]
    still = make_grid([shown], labels=[["two\nlines", ""]])
    assert last.shape == pixels(still).shape
    below = MARGIN + 40  # the labels are above; WebP is lossy and GIF has 256 colours, so not equal
    assert np.abs(last[below:] - pixels(still)[below:]).mean() < 12


def test_an_animation_goes_where_a_link_points(preview: LatentPreview, tmp_path: Path) -> None:
    (tmp_path / "a.gif").symlink_to(tmp_path / "b.gif")
    recorder_of(3, preview).save_animation(tmp_path / "a.gif")
    assert (tmp_path / "a.gif").is_symlink()
    assert (tmp_path / "b.gif").read_bytes().startswith(b"GIF")


def test_long_runs_give_no_more_frames_than_asked_for(preview: LatentPreview, tmp_path: Path) -> None:
    recorder_of(30, preview).save_animation(tmp_path / "a.gif", frames=7)
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 7


def test_bad_input_is_named(
    bundled: ldm_core.LatentDiffusion, preview: LatentPreview, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no step has been recorded"):
        Recorder(bundled).strip()
    with pytest.raises(ValueError, match="positive number of steps to show, got 0"):
        recorder_of(3, preview).strip(0)
    for name, ending in (("steps.png", "'.png'"), ("steps", "'nothing'")):
        with pytest.raises(ValueError, match=f"must end in .gif or .webp, not {ending}"):
            recorder_of(3, preview).save_animation(tmp_path / name)
    recorder = recorder_of(3, preview, images=2)
    recorder.captions = ("only one",)
    with pytest.raises(ValueError, match=r"one caption per picture \(2\), got 1"):
        recorder.strip()
    assert list(tmp_path.iterdir()) == []


def test_a_grid_has_room_for_its_pictures_and_words() -> None:
    red, blue = Image.new("RGB", (TILE, TILE), "red"), Image.new("RGB", (TILE, TILE), "blue")
    plain = make_grid([[red, blue], [blue]], tile=TILE)
    assert plain.size == (2 * MARGIN + 2 * TILE + GAP, 2 * MARGIN + 2 * TILE + GAP)
    assert plain.getpixel((MARGIN, MARGIN)) == (255, 0, 0)
    assert plain.getpixel((plain.width - MARGIN - 1, MARGIN)) == (0, 0, 255)
    assert plain.getpixel((MARGIN, plain.height - MARGIN - 1)) == (0, 0, 255)
    assert plain.getpixel((plain.width - MARGIN - 1, plain.height - MARGIN - 1)) == (255, 255, 255)
    worded = make_grid(
        [[red, blue], [blue]], title="title", rows=("row",), labels=(("one", "two\nthree"),), tile=TILE
    )
    assert worded.width > plain.width
    assert worded.height > plain.height
    assert (pixels(worded)[: MARGIN + 20] < 128).any(), "the title is written in dark letters"
    assert np.array_equal(tile_at(worded, 1, 2, rows_below=1), pixels(blue))


@pytest.mark.parametrize(
    ("size", "tile", "expected"),
    [
        ((16, 16), None, (SMALLEST, SMALLEST)),
        ((64, 32), None, (SMALLEST, SMALLEST // 2)),
        ((200, 100), None, (200, 100)),
        ((512, 768), None, (round(LARGEST * 512 / 768), LARGEST)),
        ((512, 512), 96, (96, 96)),
    ],
)
def test_pictures_keep_their_proportions(
    size: tuple[int, int], tile: int | None, expected: tuple[int, int]
) -> None:
    sheet = make_grid([[Image.new("RGB", size, "red")]], tile=tile)
    assert sheet.size == (expected[0] + 2 * MARGIN, expected[1] + 2 * MARGIN)


def test_words_without_room_are_cut_and_not_drawn_over_a_neighbour() -> None:
    white = Image.new("RGB", (TILE, TILE), "white")
    sheet = make_grid([[white, white]], labels=[["a very long label that cannot fit", ""]], tile=TILE)
    assert (pixels(sheet)[: MARGIN + 16, : MARGIN + TILE] < 128).any()
    assert (pixels(sheet)[: MARGIN + 16, MARGIN + TILE + GAP :] == 255).all()


@pytest.mark.parametrize("title", ["two\nlines\r\n", "猫 🐱 \u202e\ud800 \0", "x" * 100_000, " "])
def test_any_prompt_can_be_a_title(title: str) -> None:
    picture = Image.new("RGB", (TILE, TILE), "red")
    sheet = make_grid([[picture, picture]], title=title, tile=TILE)
    assert sheet.width == 2 * MARGIN + 2 * TILE + GAP
    assert (pixels(sheet)[:, sheet.width - MARGIN + 1 :] == 255).all(), (
        "only an edge of one pixel is in the margin"
    )
    assert np.array_equal(tile_at(sheet, 1, 2, rows_below=0), pixels(picture))


def test_one_step_is_an_animation_of_one_frame(preview: LatentPreview, tmp_path: Path) -> None:
    for ending in ("gif", "webp"):
        path = tmp_path / f"one.{ending}"
        recorder_of(1, preview).save_animation(path)
        with Image.open(path) as image:
            assert getattr(image, "n_frames", 1) == 1


def test_nothing_to_draw_is_named() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        make_grid([[]])
    with pytest.raises(ValueError, match="at least one sheet"):
        stack([])
    with pytest.raises(ValueError, match="positive number of pixels, not 0"):
        make_grid([[Image.new("RGB", (8, 8))]], tile=0)
