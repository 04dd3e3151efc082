"""Plots show the numbers they are given, comparisons measure what they say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import ldm_core
from ldm_core import DDIM, PNDM, Heun, LatentDiffusion, Sampler
from ldm_core.noise_schedule import NoiseSchedule, NoiseScheduleConfig
from ldm_core.watch import (
    guidance_sheet,
    plot_errors,
    plot_schedules,
    plot_statistics,
    plot_token_attention,
    solver_errors,
    token_weights,
)
from ldm_core.watch.comparison import steps_for

OPTIONS: dict[str, Any] = {"steps": 3, "guidance_scale": 4.0, "seed": 0}


def drawn(axes: Any, line: int) -> torch.Tensor:
    return torch.as_tensor(axes.lines[line].get_ydata(), dtype=torch.float64)


def test_a_schedule_is_drawn_as_its_table() -> None:
    schedule = NoiseSchedule(NoiseScheduleConfig())
    figure = plot_schedules(schedule)
    amounts, ratio = figure.axes
    torch.testing.assert_close(drawn(amounts, 0) ** 2, schedule.alphas_cumprod)
    torch.testing.assert_close(
        drawn(amounts, 0) ** 2 + drawn(amounts, 1) ** 2, torch.ones(1000, dtype=torch.float64)
    )
    assert drawn(ratio, 0)[0] == pytest.approx(
        math.log10(schedule.alphas_cumprod[0] / (1 - schedule.alphas_cumprod[0]))
    )
    both = plot_schedules(
        {"SD": schedule, "cosine": NoiseSchedule(NoiseScheduleConfig(beta_schedule="cosine"))}
    )
    assert [text.get_text() for text in both.axes[0].get_legend().get_texts()] == ["SD", "cosine"]
    with pytest.raises(ValueError, match="at least one noise schedule"):
        plot_schedules({})


def test_statistics_of_a_run(bundled: LatentDiffusion) -> None:
    steps = list(Sampler(bundled).steps("fire", **OPTIONS))
    spread, change = plot_statistics(steps).axes
    channels = steps[0].latent.shape[1]
    assert len(spread.lines) == 2 * channels + 2  # and two without data for the legend
    assert drawn(spread, 0)[-1] == pytest.approx(float(steps[-1].latent[:, 0].std()), rel=1e-5)
    assert drawn(change, 0)[0] == pytest.approx(
        float((steps[1].x0 - steps[0].x0).square().mean().sqrt()), rel=1e-5
    )
    with pytest.raises(ValueError, match="at least two steps, got 1"):
        plot_statistics(steps[:1])


def test_attention_by_token_and_step(bundled: LatentDiffusion) -> None:
    with ldm_core.record_attention(bundled, where="attn2") as maps:
        Sampler(bundled).txt2img("red apple", **OPTIONS)
    weights = token_weights(maps)
    assert weights.shape == (3, 77)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
    axes = plot_token_attention(maps, ["red", "apple"]).axes[0]
    shown = torch.as_tensor(axes.images[0].get_array())
    torch.testing.assert_close(shown.float(), 100 * weights[:, 1:3].T)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["red", "apple"]
    for tokens in ([], ["a"] * 77):
        with pytest.raises(ValueError, match=f"expected 1 to 76 tokens, got {len(tokens)}"):
            plot_token_attention(maps, tokens)
    with pytest.raises(ValueError, match=r"one call of each layer a step, got \[1, 2\]"):
        token_weights({"a": [torch.ones(1, 1, 1, 3)], "b": [torch.ones(1, 1, 1, 3)] * 2})


@pytest.mark.slow
def test_errors_fall_with_the_steps(bundled: LatentDiffusion) -> None:
    measured = solver_errors(bundled, {"DDIM": DDIM()}, ["fire"], calls=(2, 10), reference_steps=20)
    (few, large), (many, small) = measured["DDIM"]
    assert (few, many) == (2, 10)
    assert 0 < small < large
    axes = plot_errors(measured).axes[0]
    assert axes.lines[0].get_ydata() == pytest.approx([large, small])
    with pytest.raises(ValueError, match="at least one measured error"):
        plot_errors({})


def test_steps_that_fit_a_number_of_calls() -> None:
    assert steps_for(DDIM(), 10) == (10, 10)
    assert steps_for(Heun(), 10) == (5, 9)
    assert steps_for(PNDM(), 10) == (9, 10)


def test_a_sheet_of_guidance_scales_and_steps(bundled: LatentDiffusion) -> None:
    sampler = Sampler(bundled)
    sheet = guidance_sheet(sampler, "fire", scales=(1, 4), steps=(2, 3), tile=128)
    picture = sampler.txt2img("fire", steps=3, guidance_scale=4, seed=0)[0]
    pixels, wanted = (
        torch.frombuffer(bytearray(one.tobytes()), dtype=torch.uint8) for one in (sheet, picture)
    )
    pixels, wanted = pixels.view(sheet.height, sheet.width, 3), wanted.view(128, 128, 3)
    windows = pixels.unfold(0, 128, 1).unfold(1, 128, 1)  # (y, x, 3, 128, 128)
    corner = (windows[..., 0, 0] == wanted[0, 0]).all(dim=-1).nonzero()
    assert any(torch.equal(pixels[y : y + 128, x : x + 128], wanted) for y, x in corner.tolist())
    with pytest.raises(ValueError, match="at least one guidance scale"):
        guidance_sheet(sampler, "fire", scales=())
