"""The solvers with the bundled model: closeness to the solution, and timesteps that are no whole numbers."""

from __future__ import annotations

import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ldm_core.watch.strip
from ldm_core import (
    DDIM,
    LMS,
    DPMSolverMultistep,
    Euler,
    EulerAncestral,
    Heun,
    LatentDiffusion,
    Sampler,
    UniPC,
)
from ldm_core.sampler import SamplerStep

DOCS = Path(__file__).parents[2] / "docs"
KARRAS: list[Any] = [
    DPMSolverMultistep(spacing="karras"),
    UniPC(spacing="karras"),
    Euler(spacing="karras"),
    EulerAncestral(spacing="karras"),
    Heun(spacing="karras"),
    LMS(spacing="karras"),
]
BY_DEFAULT = (DPMSolverMultistep, EulerAncestral, Heun)  # several steps, noise, several calls a step
WALKS = pytest.mark.parametrize(
    "scheduler",
    [
        pytest.param(s, id=type(s).__name__, marks=[] if isinstance(s, BY_DEFAULT) else [pytest.mark.slow])
        for s in KARRAS
    ],
)


PICTURES = [("panda", 1), ("fire", 2), ("red apple", 3)]  # prompt and seed, as in docs/solvers.py


def latents(model: LatentDiffusion, scheduler: Any, steps: int, picture: tuple[str, int]) -> Tensor:
    prompt, seed = picture
    sampler = Sampler(model, scheduler)
    final: Tensor = sampler.txt2img(prompt, steps=steps, guidance_scale=4.0, seed=seed, output="latent")
    return final


def rms(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def expect_fewer_calls_to_be_closer(
    model: LatentDiffusion, solution: Tensor, picture: tuple[str, int]
) -> None:
    def error(scheduler: Any, steps: int) -> float:
        return rms(latents(model, scheduler, steps, picture) - solution)

    trailing = DDIM(spacing="trailing", set_alpha_to_one=True)
    # DPM++ is nearest to its bound for "panda", 0.032 of 0.034; rounding moves latents by 1e-5 between chips.
    far = min(error(DDIM(), 25), error(trailing, 25))
    assert error(DPMSolverMultistep(spacing="karras"), 15) < far
    assert error(UniPC(spacing="karras"), 15) < far / 2


@pytest.mark.slow  # 140 calls of the bundled model for each picture
@pytest.mark.parametrize("picture", PICTURES[1:], ids=str)
def test_fifteen_calls_come_closer_than_ddims_25(bundled: LatentDiffusion, picture: tuple[str, int]) -> None:
    # UniPC in 60 steps stands for the solution; the next test has DDIM's in 1000, for another picture.
    solution = latents(bundled, UniPC(spacing="karras"), 60, picture)
    expect_fewer_calls_to_be_closer(bundled, solution, picture)


@pytest.mark.slow  # 1000 steps of the bundled model
def test_they_do_measured_from_the_1000_step_solution(bundled: LatentDiffusion) -> None:
    picture = PICTURES[0]
    solution = latents(bundled, DDIM(spacing="linspace", set_alpha_to_one=True), 1000, picture)
    expect_fewer_calls_to_be_closer(bundled, solution, picture)
    assert rms(latents(bundled, UniPC(spacing="karras"), 60, picture) - solution) < 0.01


@pytest.mark.one_in(3)
@WALKS
def test_a_run_between_the_tables_timesteps(bundled: LatentDiffusion, scheduler: Any) -> None:
    asked: list[float] = []

    def unet(x: Tensor, t: Any, context: Tensor) -> Tensor:
        asked.append(t)
        return bundled.unet(x, t, context)

    seen: list[SamplerStep] = []
    sampler = Sampler(replace(bundled, unet=unet), scheduler)
    options: dict[str, Any] = {"steps": 4, "guidance_scale": 4.0, "output": "tensor"}
    image = sampler.txt2img("fire", seed=3, on_step=seen.append, **options)
    assert bool(image.isfinite().all())
    assert [step.t for step in seen] == [t for t, _ in scheduler.timesteps(bundled.noise_schedule, 4)]
    assert set(asked) == {step.t for step in seen}
    assert any(t != round(t) for t in asked)
    assert torch.equal(sampler.txt2img("fire", seed=3, **options), image)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    y, x = np.mgrid[0:64, 0:64]
    return Image.fromarray(np.stack([4 * x, 4 * y, 255 - 2 * x - 2 * y], axis=-1).astype(np.uint8))


@pytest.mark.one_in(3)
@WALKS
def test_img2img_and_inpainting_between_the_tables_timesteps(
    bundled: LatentDiffusion, picture: Image.Image, scheduler: Any
) -> None:
    options: dict[str, Any] = {"steps": 5, "guidance_scale": 3.0, "seed": 4, "output": "tensor"}
    sampler = Sampler(bundled, scheduler)
    redrawn = [sampler.img2img("fire", picture, strength=s, **options) for s in (0.6, 0.65)]
    assert all(bool(image.isfinite().all()) for image in redrawn)
    assert not torch.equal(*redrawn)  # 0.65 starts between two levels
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (32, 0, 64, 64))
    known = torch.from_numpy(np.asarray(picture) / 255).permute(2, 0, 1)[None].float()
    for strength in (1.0, 0.5):
        painted = sampler.inpaint("fire", picture, mask, strength=strength, **options)
        assert torch.equal(painted[..., :32], known[..., :32])
        assert not torch.equal(painted[..., 32:], known[..., 32:])


def test_the_unet_takes_timesteps_between_whole_ones(bundled: LatentDiffusion) -> None:
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    context = torch.randn(2, 5, bundled.config.unet.context_dim, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        at = {t: bundled.unet(x, t, context) for t in (500, 500.0, 500.5, 501)}
        each = bundled.unet(x, torch.tensor([500.0, 500.5]), context)
        whole = bundled.unet(x, torch.tensor([500, 501]), context)
    assert torch.equal(at[500], bundled.unet(x, np.int64(500), context).detach())
    middle = (at[500] + at[501]) / 2
    # The embedding's fastest sine turns by a radian from one timestep to the next: no straight line. (The
    # network's own ratios, 0.19 and 0.49; rounding is a thousandth of them.)
    assert rms(at[500.5] - middle) < 0.25 * rms(at[501] - at[500])
    assert rms(at[500.5] - at[500]) > 0.4 * rms(at[501] - at[500])
    for row, t in enumerate((500, 500.5)):
        torch.testing.assert_close(each[row], at[t][row], rtol=0, atol=1e-5)
    torch.testing.assert_close(whole[1], at[501][1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (float("nan"), "expected t as a finite number or a tensor"),
        (float("inf"), "expected t as a finite number or a tensor"),
        ("500", "got '500'"),
        (None, "got None"),
        (torch.tensor([500.0]), r"expected t as a number or \(2,\), got \(1,\)"),
        (torch.tensor([True, False]), r"got torch\.bool"),
        (torch.tensor([1j, 2j]), r"got torch\.complex64"),
    ],
)
def test_what_is_no_timestep(bundled: LatentDiffusion, t: Any, message: str) -> None:
    context = torch.zeros(2, 5, bundled.config.unet.context_dim)
    with pytest.raises(ValueError, match=message):
        bundled.unet(torch.zeros(2, 16, 8, 8), t, context)


def test_captions_of_a_strip_round_the_timestep(bundled: LatentDiffusion) -> None:
    strip = ldm_core.watch.strip.Recorder(bundled)
    Sampler(bundled, DPMSolverMultistep(spacing="karras")).txt2img("fire", steps=3, on_step=strip)
    assert strip.strip().size[0] > 0


@pytest.mark.slow  # draws with three schedulers
def test_the_docs_script_measures_what_the_table_shows(bundled: LatentDiffusion, tmp_path: Path) -> None:
    script = runpy.run_path(str(DOCS / "solvers.py"))
    few = {name: script["SCHEDULERS"][name] for name in ("DDIM", "Heun, Karras", "PNDM (PLMS)")}
    measured = script["errors"](bundled, few, counts=(3,), reference_steps=6)
    assert [[calls for calls, _ in points] for points in measured.values()] == [[3], [3], [3]]
    rows = script["table"](measured, counts=(3,))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- solvers -->\nold\n<!-- end -->\nafter\n")
    script["write_table"](page, rows)
    assert page.read_text() == f"before\n<!-- solvers -->\n{rows}\n<!-- end -->\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no lines <!-- solvers -->"):
        script["write_table"](page, rows)
    docs = (DOCS / "schedulers.md").read_text(encoding="utf-8")
    for name in script["SCHEDULERS"]:
        assert re.search(
            rf"^\| {re.escape(name)} \|( \d\.\d+ \|){{{len(script['CALLS'])}}}$", docs, re.MULTILINE
        )
