"""Latents that become NaN or infinite: the sampler warns, and the command line keeps it and fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli_runs import Run
from support.configs import TINY
from support.recipes import RECIPE
from torch import Tensor

from ldm_core import Sampler, build
from ldm_core.model import LatentDiffusion
from ldm_core.recipe import read_recipe, to_json
from ldm_core.support.finite import FiniteCheck


@pytest.fixture(scope="module")
def tiny() -> LatentDiffusion:
    torch.manual_seed(0)
    return build(TINY["sd1"])


def overflowing(model: LatentDiffusion, *, below: float, row: int) -> LatentDiffusion:
    """The model with a U-Net whose prediction for one row is infinite below a timestep."""

    def unet(x: Tensor, t: Any, context: Tensor, y: Tensor | None = None) -> Tensor:
        prediction = torch.zeros_like(x)
        if t < below:
            prediction[row] = torch.inf
        return prediction

    return replace(model, unet=unet)


QUICK: dict[str, Any] = {"steps": 4, "guidance_scale": 1.0, "seed": 0, "num_images": 3}


def test_the_sampler_names_the_image_and_the_step(tiny: LatentDiffusion) -> None:
    sampler = Sampler(overflowing(tiny, below=600, row=1))
    expected = r"^image 1: latent with NaN or infinity since step 2 of 4\. The picture is unusable"
    with pytest.warns(UserWarning, match=expected):
        pictures = sampler.txt2img("a cat", **QUICK)
    labels = [picture.info.get("not_finite") for picture in pictures]
    assert labels == [None, "latent with NaN or infinity since step 2 of 4", None]
    for output in ("tensor", "latent"):
        with pytest.warns(UserWarning, match=expected):
            assert not sampler.txt2img("a cat", output=output, **QUICK)[1].isfinite().any()


def test_the_warning_points_at_the_users_call(tiny: LatentDiffusion) -> None:
    sampler, grey = Sampler(overflowing(tiny, below=2000, row=0)), torch.full((1, 3, 64, 64), 0.5)
    calls: list[Callable[[], Any]] = [
        lambda: sampler.sample("a cat", **QUICK),
        lambda: sampler.txt2img("a cat", **QUICK),
        lambda: sampler.img2img("a cat", grey, output="latent", **QUICK),
    ]
    for call in calls:
        with pytest.warns(UserWarning, match="NaN or infinity") as caught:
            call()
        assert [(w.filename, w.lineno) for w in caught] == [(__file__, call.__code__.co_firstlineno)]


def test_a_latent_that_recovers_is_no_reason_to_warn(tiny: LatentDiffusion) -> None:
    def recover(step: Any) -> Tensor | None:
        return torch.zeros_like(step.latent) if step.index == 3 else None

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sampler(overflowing(tiny, below=600, row=1)).txt2img("a cat", on_step=recover, **QUICK)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_decoder_that_overflows(tiny: LatentDiffusion, value: float) -> None:
    def infinite(latent: Tensor) -> Tensor:
        return torch.full((len(latent), 3, 16, 16), value)

    model = overflowing(tiny, below=0, row=0)
    model.decode_latent = infinite  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="image 0: decoded to NaN or infinity; image 1: .*; image 2: "):
        pictures = Sampler(model).txt2img("a cat", **QUICK)
    assert {picture.info["not_finite"] for picture in pictures} == {"decoded to NaN or infinity"}


def test_a_finite_picture_can_be_read_by_versions_that_know_no_others() -> None:
    assert "not_finite" not in to_json(RECIPE)
    assert "not_finite" in to_json(replace(RECIPE, not_finite="decoded to NaN or infinity"))


def test_a_warning_names_four_images() -> None:
    check = FiniteCheck()
    check.note(torch.full((6, 1, 1, 1), torch.nan))
    with pytest.warns(UserWarning, match=r"image 3: [^;]*; … \(6 in all\)\. The picture"):
        check.warn()


def test_the_command_line_keeps_the_picture_and_fails(run: Run) -> None:
    result = run("txt2img", "fire", "pizza", "--steps", "2", "--guidance", "1e39", "--seed", "0")
    assert (result.status, result.out) == (1, ["txt2img-0001.png", "txt2img-0002.png"])
    warning, error = result.err
    assert "warning: image 0: latent with NaN or infinity since step 1 of 2" in warning
    assert error == "ldm-core: error: 2 of 2 pictures have NaN or infinity in their latents"
    assert Path("txt2img-0001.png").is_file()
    assert read_recipe("txt2img-0001.png").not_finite == "latent with NaN or infinity since step 1 of 2"


@pytest.mark.parametrize("value", ["a word", 3, [torch.zeros(1)], {"latent": None}, False])
def test_on_step_returns_a_tensor_or_none(tiny: LatentDiffusion, value: Any) -> None:
    with pytest.raises(ValueError, match=r"on_step returned .*expected None or a tensor of \(3, 4, 16, 16\)"):
        Sampler(tiny).txt2img("a cat", on_step=lambda step: value, **QUICK)
