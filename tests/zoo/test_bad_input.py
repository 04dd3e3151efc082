"""What a published model, its file or its inputs may have wrong: one clear line each."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.reference import random_model
from support.zoo import UNET, averages, small, small_yaml
from torch import Tensor

import ldm_core
from ldm_core import Sampler
from ldm_core.checkpoint import CheckpointError
from ldm_core.config import ConfigError, LatentDiffusionConfig
from ldm_core.loading.compvis_yaml import from_yaml
from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion


@pytest.fixture(scope="module")
def models() -> dict[str, LatentDiffusion]:
    names = ("celeba256", "cin256-v2", "semantic-synthesis256", "bsr-sr", "inpainting-big", "x4-upscaler")
    return {name: random_model(small(name)) for name in names}


def tensors_of(model: LatentDiffusion) -> dict[str, Tensor]:
    return {key: value.contiguous().clone() for key, value in file_tensors(model).items()}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cin256-v2", {"conditioning_key": "concat"}, "concat needs a U-Net with the conditions concat, but"),
        ("cin256-v2", {"conditioning_key": "adm"}, "unet_config's has context"),
        ("celebahq-ldm-vq-4", {"conditioning_key": "nonsense"}, None),  # unused without a condition
        ("cin256-v2", {"conditioning_key": "nonsense"}, "conditioning_key must be one of concat, crossattn"),
    ],
)
def test_a_conditioning_key_that_contradicts_the_u_net(
    name: str, changes: dict[str, Any], message: str | None, published: dict[str, Any]
) -> None:
    config = copy.deepcopy(published[f"latent-diffusion/latent-diffusion/{name}"]["config"])
    config["params"] |= changes
    if message is None:
        assert from_yaml({"model": config}).conditioner is None
        return
    with pytest.raises(ConfigError, match=message):
        from_yaml({"model": config})


@pytest.mark.parametrize("preset", ["x4-upscaler", "sd2-unclip-h"])
def test_the_noise_schedule_of_a_conditioner_survives_json(preset: str) -> None:
    config = small(preset)
    assert LatentDiffusionConfig.from_dict(config.to_dict()) == config
    for wrong in (5, None, [], {"timesteps": 0}, {"unknown": 1}):
        data = config.to_dict()
        data["conditioner"] = {**data["conditioner"], "noise_schedule": wrong}
        with pytest.raises(ConfigError):
            LatentDiffusionConfig.from_dict(data)


def test_a_file_of_averages_alone_is_named_as_such(
    models: dict[str, LatentDiffusion], tmp_path: Path
) -> None:
    model = models["celeba256"]
    tensors = tensors_of(model)
    rest = {key: value for key, value in tensors.items() if not key.startswith(UNET)}
    save_file(rest | averages(tensors), tmp_path / "ema.safetensors")
    for ema in (None, True, False):
        with pytest.raises(CheckpointError, match=r"only averaged \(EMA\) weights of a U-Net") as caught:
            ldm_core.load(tmp_path / "ema.safetensors", config=model.config, ema=ema)
        assert "model.diffusion_model." in str(caught.value)


def test_a_scale_that_contradicts_the_yaml_is_named_with_it(
    models: dict[str, LatentDiffusion], published: dict[str, Any], tmp_path: Path
) -> None:
    document = small_yaml(published["latent-diffusion/ldm/celeba256"], "celeba256")
    document["params"]["scale_factor"] = 0.5
    path = tmp_path / "model.safetensors"
    save_file(tensors_of(models["celeba256"]) | {"scale_factor": torch.tensor(0.25)}, path)
    path.with_suffix(".yaml").write_text(yaml.safe_dump({"model": document}))
    with pytest.raises(CheckpointError) as caught:
        ldm_core.load(path)
    message = str(caught.value)
    assert "latent_scale is 0.5 according to" in message
    assert "0.25 according to the tensor scale_factor" in message


def test_an_unknown_conditioner_is_named_with_the_known_ones(published: dict[str, Any]) -> None:
    document = small_yaml(published["latent-diffusion/ldm/cin256"], "cin256")
    document["params"]["cond_stage_config"]["target"] = "ldm.modules.encoders.modules.GoatEmbedder"
    with pytest.raises(ConfigError, match="GoatEmbedder is not one of") as caught:
        from_yaml({"model": document})
    for known in ("ClassEmbedder", "BERTEmbedder", "SpatialRescaler", "FrozenCLIPEmbedder", "Identity"):
        assert known in str(caught.value)


SIZE = 64
WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "a label too large": ("cin256-v2", {"inputs": 1001}, r"0\.\.1000"),
    "a label below zero": ("cin256-v2", {"inputs": -1}, r"0\.\.1000"),
    "a label of another type": ("cin256-v2", {"inputs": 1.5}, r"0\.\.1000"),
    "inputs without a conditioner": ("celeba256", {"inputs": "a cat"}, "unconditional"),
    "guidance without a conditioner": ("celeba256", {"guidance_scale": 3.0}, "guidance_scale 3.0"),
    "a class too large": (
        "semantic-synthesis256",
        {"inputs": torch.full((1, SIZE, SIZE), 182)},
        r"0\.\.181",
    ),
    "a map of a size that does not fit": (
        "semantic-synthesis256",
        {"inputs": torch.zeros(1, SIZE + 4, SIZE, dtype=torch.long)},
        "multiple of 16",
    ),
    "a map of one size and noise of another": (
        "semantic-synthesis256",
        {"inputs": torch.zeros(1, SIZE, SIZE, dtype=torch.long), "noise": torch.zeros(1, 3, 8, 8)},
        r"expected noise of \(1, 3, 16, 16\)",
    ),
    "a map and a height of another size": (
        "semantic-synthesis256",
        {"inputs": torch.zeros(1, SIZE, SIZE, dtype=torch.long), "height": 128},
        "64×64 pixels, which contradicts width=None and height=128",
    ),
    "a small picture that does not fit": ("bsr-sr", {"inputs": torch.zeros(3, 9, 16)}, "multiple of 32"),
    "a small picture of huge size": (
        "bsr-sr",
        {"inputs": torch.zeros(1).expand(3, 2**16, 2**16)},
        "at most 178,956,970 pixels, got 4,294,967,296",
    ),
    "a level out of range": (
        "x4-upscaler",
        {"inputs": {"image": torch.zeros(3, 16, 16), "noise_level": 350}},
        r"0\.\.349",
    ),
    "a masked picture of an odd size": (
        "inpainting-big",
        {"image": torch.zeros(3, 48, 64), "mask": torch.zeros(48, 64)},
        "multiple of 32",
    ),
    "a masked picture without a mask": ("inpainting-big", {"image": torch.zeros(3, 64, 64)}, "mask"),
    "no picture": ("inpainting-big", {}, "image"),
}


@pytest.mark.parametrize(("preset", "options", "told"), WRONG.values(), ids=WRONG)
def test_bad_inputs_are_named_before_anything_is_computed(
    preset: str, options: dict[str, Any], told: str, models: dict[str, LatentDiffusion]
) -> None:
    def unet(*args: Any) -> Tensor:
        raise AssertionError("the U-Net was evaluated")

    sampler = Sampler(replace(models[preset], unet=unet))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=told):
        sampler.sample(**options, steps=1, output="latent")
