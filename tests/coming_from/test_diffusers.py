"""The lines of docs/coming-from-diffusers.md: diffusers' and ours give the same pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.configs import TINY
from support.diffusers_pipelines import write_theirs
from support.paired_blocks import DOCS, PageRun, attentive, error, levels, scheduler_named, sections
from support.random_models import random_model

import ldm_core

PAGE = "coming-from-diffusers.md"
LEVELS = 1  # of 256: what rounding to whole levels can make of any difference
TEXT = (DOCS / PAGE).read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+Scheduler\.from_config.+?)` \| `(.+?)` \|$", TEXT, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files that the page names, as the working directory."""
    folder = tmp_path_factory.mktemp("files")
    models = {kind: attentive(random_model(TINY[kind])) for kind in ("sd1", "sd1-inpaint")}
    for kind, name in (("sd1", "stable-diffusion-v1-5"), ("sd1-inpaint", "stable-diffusion-inpainting")):
        index = write_theirs(models[kind], folder / name) / "model_index.json"
        index.write_text(index.read_text().replace("DDIMScheduler", "PNDMScheduler"))  # as SD1's folder has
    ldm_core.save(models["sd1"], folder / "v1-5-pruned-emaonly.safetensors")
    generator = torch.Generator().manual_seed(0)
    width = models["sd1"].config.text_encoder.width
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v"
    rows = models["sd1"].unet.mid.attention.blocks[0].attn2.to_v.weight.shape[0]
    lora = {f"{layer}.lora_A.weight": torch.randn(4, width, generator=generator)}
    lora[f"{layer}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) / 4
    save_file(lora, folder / "style.safetensors")
    save_file({"my-style": torch.randn(1, width, generator=generator)}, folder / "my-style.safetensors")
    noise = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(folder / "photo.png")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (8, 4, 28, 20))
    mask.save(folder / "mask.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def results(folder: Path) -> PageRun:
    return PageRun(PAGE)


TITLES = list(sections(PAGE))
DEFAULT = 2  # sections that run by default, from the top; each takes about half a second


@pytest.mark.parametrize(
    "title", [*TITLES[:DEFAULT], *(pytest.param(title, marks=pytest.mark.slow) for title in TITLES[DEFAULT:])]
)
def test_both_sides_agree(results: PageRun, title: str) -> None:
    theirs, ours = results[title]["diffusers"], results[title]["ldm_core"]
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        if isinstance(value, torch.Tensor):
            assert error(value, theirs[name]) < 1e-4
        else:
            assert levels(value, theirs[name]) <= LEVELS


@pytest.mark.slow  # runs the whole page
def test_every_section_draws_another_picture(results: PageRun) -> None:
    """Else two sides could agree whatever was asked for."""
    ours = [results[title]["ldm_core"] for title in TITLES]
    images = [result["image"] for result in ours if "image" in result]
    for index, image in enumerate(images):
        assert all(levels(image, other) > LEVELS for other in images[:index])


@pytest.mark.slow  # a second each
@pytest.mark.parametrize(("theirs", "ours"), ROWS, ids=[row[1] for row in ROWS])
def test_each_row_of_schedulers_draws_the_same_picture(folder: Path, theirs: str, ours: str) -> None:
    import diffusers

    pipe = diffusers.StableDiffusionPipeline.from_pretrained("stable-diffusion-v1-5", safety_checker=None)
    name = theirs.partition(".")[0]
    pipe.scheduler = eval(theirs, {name: getattr(diffusers, name), "config": pipe.scheduler.config})
    image = pipe("a red apple", num_inference_steps=5, generator=torch.Generator().manual_seed(1)).images[0]
    sampler = ldm_core.Sampler(ldm_core.load("stable-diffusion-v1-5"), scheduler_named(ours))
    drawn = sampler.txt2img("a red apple", steps=5, seed=1)[0]
    assert levels(drawn, image) <= LEVELS


def test_all_rows_were_found() -> None:
    assert len(ROWS) == 10
