"""The lines of docs/coming-from-a1111.md: its text is read, and its procedure gives the same picture."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.compvis import CompVisModel
from support.configs import TINY
from support.paired_blocks import DOCS, attentive, levels, scheduler_named
from support.random_models import random_model

import ldm_core
from ldm_core.cli import main
from ldm_core.model import LatentDiffusion
from ldm_core.recipe import from_parameters_text
from ldm_core.recipe.parameters_text import SAMPLERS

TEXT = (DOCS / "coming-from-a1111.md").read_text(encoding="utf-8")
[PARAMETERS] = re.findall(r"^```text\n(.*?)\n```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^python -m ldm_core (txt2img .*)$", TEXT, re.MULTILINE)
BLOCKS = re.findall(r"^```py\n# ldm_core\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
ROWS = re.findall(r"^\| ([\w+ ]+) \| `(\w+\(.*?\))` \| `(.+?)` \|", TEXT, re.MULTILINE)
LEVELS = 2  # of 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LatentDiffusion]:
    """A small model, in the file that the page names, and a picture with the page's text."""
    model = attentive(random_model(TINY["sd1"]))
    folder = tmp_path_factory.mktemp("files")
    ldm_core.save(model, folder / "v1-5-pruned-emaonly.safetensors")
    info = PngInfo()
    info.add_text("parameters", PARAMETERS)
    Image.new("RGB", (32, 32)).save(folder / "old.png", pnginfo=info)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield model


@pytest.fixture(scope="module")
def images(model: LatentDiffusion) -> list[Image.Image]:
    """What each block draws."""
    space: dict[str, Any] = {}
    found = []
    for code in BLOCKS:
        exec(compile(code, "coming-from-a1111.md", "exec", dont_inherit=True), space)
        found.append(space["image"])
    return found


@pytest.mark.slow
def test_the_text_and_the_commands_give_the_picture_of_the_python_lines(images: list[Image.Image]) -> None:
    assert len(COMMANDS) == 2
    for command in COMMANDS:
        *options, _, name = shlex.split(command)
        assert main([*options, "--device", "cpu", "-q", "-o", name]) == 0
        with Image.open(Path(name)) as image:
            assert levels(image, images[0]) == 0


def test_weights_matter(images: list[Image.Image], model: LatentDiffusion) -> None:
    sampler = ldm_core.Sampler(model, ldm_core.DPMSolverMultistep(spacing="karras"))
    plain = sampler.txt2img("a red apple", "blurry", steps=5, guidance_scale=7, seed=1)[0]
    assert levels(plain, images[0]) > 2 * LEVELS


@pytest.mark.parametrize(("name", "ours", "option"), ROWS, ids=[row[0] for row in ROWS])
def test_each_row_of_samplers_is_what_the_text_gives(name: str, ours: str, option: str) -> None:
    from ldm_core.cli.parser import build_parser

    recipe = from_parameters_text(f"x\nSteps: 5, Sampler: {name}, Seed: 1, Size: 32x32")
    made = getattr(ldm_core.schedulers, recipe.scheduler)(**recipe.scheduler_settings)
    assert made == scheduler_named(ours)
    build_parser().parse_args(["txt2img", "x", "--scheduler", *shlex.split(option)])


def test_every_sampler_that_the_text_names_has_a_row() -> None:
    assert {row[0] for row in ROWS} == SAMPLERS.keys() - {"PNDM", "DDPM"}  # which the web UI lacks


def test_the_web_uis_procedure_draws_the_picture(model: LatentDiffusion, images: list[Image.Image]) -> None:
    """Its weights, levels, initial noise and guidance, by k-diffusion and diffusers' networks."""
    k_diffusion = pytest.importorskip("k_diffusion", exc_type=ImportError)
    original = CompVisModel(model)
    context = original.get_learned_conditioning(["a red apple"])
    weights = torch.ones(1, 77, 1)
    weights[0, 2] = 1.3  # after the start and "a"
    weighted = context * weights
    weighted = weighted * (context.mean() / weighted.mean())
    negative = original.get_learned_conditioning(["blurry"])
    denoiser = k_diffusion.external.CompVisDenoiser(original)

    def guided(x: Any, sigma: Any) -> Any:
        cond, uncond = (denoiser(x, sigma, cond=context) for context in (weighted, negative))
        return uncond + (cond - uncond) * 7.0

    sigmas = k_diffusion.sampling.get_sigmas_karras(5, denoiser.sigma_min.item(), denoiser.sigma_max.item())
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(1))[None]
    for start, image in ((noise * sigmas[0], images[1]), (noise * (1 + sigmas[0] ** 2) ** 0.5, images[0])):
        latent = k_diffusion.sampling.sample_dpmpp_2m(guided, start, sigmas, disable=True)
        pixels = (original.decode_first_stage(latent) / 2 + 0.5).clamp(0, 1)[0].permute(1, 2, 0)
        theirs = Image.fromarray((pixels * 255).round().to(torch.uint8).numpy())
        assert levels(image, theirs) <= LEVELS
