"""The lines of docs/coming-from-k-diffusion.md: its samplers and ours give the same latents."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from support.paired_blocks import DOCS, PageRun, error, scheduler_named, sections

import ldm_core

k_diffusion = pytest.importorskip("k_diffusion", exc_type=ImportError)

PAGE = "coming-from-k-diffusion.md"
ROWS = re.findall(
    r"^\| `(sample_\w+)` \| `(.+?)` \|$", (DOCS / PAGE).read_text(encoding="utf-8"), re.MULTILINE
)
LATENT = 1e-3  # of the largest value; its sigmas come from a float32 table


@pytest.fixture(scope="module")
def results(original: dict[str, Any]) -> PageRun:
    return PageRun(PAGE, {"k-diffusion": original})


@pytest.mark.parametrize("title", sections(PAGE))
def test_both_sides_agree(results: PageRun, title: str) -> None:
    assert error(results[title]["ldm_core"]["latent"], results[title]["k-diffusion"]["latent"]) < LATENT


@pytest.mark.parametrize(("theirs", "ours"), ROWS)
@pytest.mark.parametrize("levels", ["karras", "exponential"])
def test_each_row_of_samplers_gives_the_same_latents(
    original: dict[str, Any], theirs: str, ours: str, levels: str
) -> None:
    model = original["model"]
    denoiser = k_diffusion.external.CompVisDenoiser(model)
    make = getattr(k_diffusion.sampling, f"get_sigmas_{levels}")
    sigmas = make(4, denoiser.sigma_min.item(), denoiser.sigma_max.item())
    stream = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 4, 16, 16, generator=stream)
    options: dict[str, Any] = {"extra_args": {"cond": model.get_learned_conditioning(["a red apple"])}}
    if "ancestral" in theirs:
        options["noise_sampler"] = lambda sigma, following: torch.randn(noise.shape, generator=stream)
    sample = getattr(k_diffusion.sampling, theirs)
    latent = sample(denoiser, noise * sigmas[0], sigmas, disable=True, **options)
    scheduler = scheduler_named(ours.replace("karras", levels))
    loaded = ldm_core.load("sd-v1-4.ckpt")
    _, s = loaded.noise_schedule.signal_and_noise(999)
    drawn = ldm_core.Sampler(loaded, scheduler).txt2img(
        "a red apple", steps=4, guidance_scale=1, latent=s * noise, seed=1, output="latent"
    )
    assert error(drawn, latent) < LATENT


def test_all_rows_were_found() -> None:
    assert len(ROWS) == 5
