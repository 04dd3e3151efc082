"""The same file through diffusers' own single-file loader and through ours: the same numbers.

At full size, with random weights, for SD1, SD2-base, SD2-v and inpainting: marked slow.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from support.configs import SMALL
from support.reference import computed_alike, random_model, relative_error, settings_folder

import ldm_core
from ldm_core.checkpoint import save
from ldm_core.config import PRESETS, LatentDiffusionConfig

logging.getLogger("diffusers").setLevel(logging.ERROR)
TOLERANCE = 1e-5  # float32: two orders of summation in some hundred layers


def compare(path: Path, config: LatentDiffusionConfig, folder: Path, size: int) -> dict[str, float]:
    """The relative errors of the three networks on the same inputs, each pair side by side."""
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline

    inpaints = config.unet.in_channels == 9
    kind = StableDiffusionInpaintPipeline if inpaints else StableDiffusionPipeline
    theirs = kind.from_single_file(path, config=str(folder), local_files_only=True, safety_checker=None)
    ours = ldm_core.load(path)
    generator = torch.Generator().manual_seed(0)
    f = config.autoencoder.downsampling
    x = torch.randn(1, config.unet.in_channels, size // f, size // f, generator=generator)
    image = torch.rand(1, 3, size, size, generator=generator) * 2 - 1
    z = torch.randn(1, 4, size // f, size // f, generator=generator)
    tokens = ours.tokenizer(["a photograph of an astronaut riding a horse"])
    with torch.no_grad(), computed_alike(ours):  # this is about files
        context = ours.text_encoder(tokens)
        return {
            "text": relative_error(context, theirs.text_encoder(tokens).last_hidden_state),
            "unet": relative_error(ours.unet(x, 501, context), theirs.unet(x, 501, context).sample),
            "decoder": relative_error(ours.autoencoder.decode(z), theirs.vae.decode(z).sample),
            "encoder": relative_error(
                ours.autoencoder.encode(image).mean, theirs.vae.encode(image).latent_dist.mean
            ),
        }


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        ("sd1", "safetensors"),
        ("sd2", "ckpt"),
        pytest.param("sd1", "ckpt", marks=pytest.mark.slow),
        pytest.param("sd2", "safetensors", marks=pytest.mark.slow),
        pytest.param("sd1-inpaint", "safetensors", marks=pytest.mark.slow),
        pytest.param("sd1-inpaint", "ckpt", marks=pytest.mark.slow),
    ],
)
def test_small_models(kind: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"model.{ending}"
    save(random_model(SMALL[kind]), path)
    folder = settings_folder(SMALL[kind], tmp_path / "settings")
    errors = compare(path, SMALL[kind], folder, 64)
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.slow  # files of 4 to 5 GB
@pytest.mark.parametrize("name", ["sd1", "sd2-base", "sd2-v", "sd1-inpaint"])
def test_full_size(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(random_model(PRESETS[name]), path)
    folder = settings_folder(PRESETS[name], tmp_path / "settings")
    errors = compare(path, PRESETS[name], folder, 128)
    print(f"\n{name}: " + ", ".join(f"{part} {error:.1e}" for part, error in errors.items()))
    shutil.rmtree(tmp_path)
    assert max(errors.values()) < TOLERANCE, errors
