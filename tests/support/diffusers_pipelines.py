"""Folders as diffusers writes them, for tests."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.configs import TINY
from support.reference import (
    random_model,
    reference_autoencoder,
    reference_text_encoder,
    reference_unet,
)

from ldm_core.checkpoint import save
from ldm_core.checkpoint.folder import AUTOENCODER, MODEL_INDEX, SCHEDULER, VQ_AUTOENCODER
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.clip.settings import stored_text_encoder
from ldm_core.conditioners import UnclipConfig
from ldm_core.config import LatentDiffusionConfig
from ldm_core.loading import diffusers_config
from ldm_core.loading.diffusers_folder import check_classes
from ldm_core.loading.parts import parts
from ldm_core.loading.pipelines import conditioner_in
from ldm_core.model import LatentDiffusion

logging.getLogger("diffusers").setLevel(logging.ERROR)


Models = dict[str, LatentDiffusion]


@pytest.fixture(scope="module")
def models() -> dict[str, LatentDiffusion]:
    return {kind: random_model(TINY[kind]) for kind in ("sd1", "sd2", "x4-upscaler")}


@pytest.fixture(scope="module")
def theirs(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that diffusers and transformers wrote themselves, of the small SD1 model."""
    return write_theirs(models["sd1"], tmp_path_factory.mktemp("theirs") / "sd1")


def write_theirs(model: LatentDiffusion, folder: Path, **options: Any) -> Path:
    from diffusers import PNDMScheduler

    save(model, folder, layout="diffusers")
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        shutil.rmtree(folder / part)
    reference_unet(model).save_pretrained(folder / "unet", **options)
    vae = reference_autoencoder(model)
    vae.register_to_config(scaling_factor=model.config.latent_scale)
    vae.save_pretrained(folder / "vae", **options)
    options.pop("safe_serialization", None)  # transformers 5 writes safetensors only
    reference_text_encoder(model).save_pretrained(folder / "text_encoder", **options)
    schedule = model.config.noise_schedule
    PNDMScheduler(
        beta_start=schedule.linear_start,
        beta_end=schedule.linear_end,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=next(
            k for k, v in diffusers_config.PREDICTIONS.items() if v == model.config.prediction
        ),
    ).save_pretrained(folder / "scheduler")
    config = json.loads((folder / "unet" / "config.json").read_text())
    size = model.config.image_size // model.config.autoencoder.downsampling
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": size}))
    return folder


def from_settings(folder: dict[str, Any]) -> LatentDiffusionConfig:
    """A whole folder's settings, as `load` reads them."""
    check_classes(folder)
    scheduler = folder[SCHEDULER]
    networks: Any = {"text_encoder": None, "conditioner": conditioner_in(folder)}
    for part in parts():
        for name in () if part.folder is None else part.folder.stems:
            entry = folder[MODEL_INDEX].get(name)
            named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
            if f"{name}/config.json" in folder and named in part.folder.classes.get(name, ()):
                networks[part.fills] = part.folder.read(folder[f"{name}/config.json"], folder)
    scale = next(folder[file]["scaling_factor"] for file in (AUTOENCODER, VQ_AUTOENCODER) if file in folder)
    return LatentDiffusionConfig(
        **networks,
        noise_schedule=diffusers_config.noise_schedule_config(scheduler),
        prediction=diffusers_config.prediction(scheduler),
        latent_scale=scale,
        image_size=diffusers_config.sample_size(folder) * networks["autoencoder"].downsampling,
    )


def used(config: LatentDiffusionConfig) -> LatentDiffusionConfig:
    """What a folder keeps of a configuration: the text encoder without what is never used.

    A folder has the averaged weights only, if there are any.
    """
    config = replace(config, use_ema=False)
    if isinstance(config.conditioner, UnclipConfig):  # its folder always has mean and std
        config = replace(config, conditioner=replace(config.conditioner, statistics=True))
    if isinstance(config.text_encoder, TextEncoderConfig):
        return replace(config, text_encoder=stored_text_encoder(config.text_encoder))
    return config
