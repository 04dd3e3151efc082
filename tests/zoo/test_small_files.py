"""Small models of every published structure, saved and loaded with the same bits, also averaged weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.reference import random_model
from support.weights import same_weights
from support.zoo import PUBLISHED, UNET, averages, small, small_yaml

import ldm_core
from ldm_core.config import PRESETS
from ldm_core.loading.compvis_yaml import from_yaml
from ldm_core.loading.save import file_tensors

# Models of other training data have the same structure.
ALIKE = {"ffhq256", "lsun-beds256", "semantic-synthesis512", "sd2-unclip-l"}
EACH = pytest.mark.parametrize("preset", sorted(set(PRESETS) - ALIKE))


@pytest.mark.one_in(12)
@EACH
def test_a_saved_model_loads_with_the_same_bits(preset: str, tmp_path: Path) -> None:
    model = random_model(small(preset))
    path = tmp_path / "model.safetensors"
    ldm_core.save(model, path)
    back = ldm_core.load(path)
    assert back.config == model.config
    assert same_weights(model, back)
    assert type(back.conditioner) is type(model.conditioner)


AVERAGED = pytest.mark.parametrize(
    ("preset", "ema", "taken"),
    [
        *((preset, None, PRESETS[preset].use_ema) for preset in ("celeba256", "rdm768", "cin256-v2", "sd1")),
        ("semantic-synthesis256", False, False),
        ("text2img-large", True, True),
    ],
)


@pytest.mark.one_in(3)
@AVERAGED
def test_averages_are_taken_where_the_original_scripts_take_them(
    preset: str, ema: bool | None, taken: bool, tmp_path: Path
) -> None:
    model = random_model(small(preset))
    tensors = {key: value.contiguous().clone() for key, value in file_tensors(model).items()}
    averaged = averages({key: value + 1 for key, value in tensors.items()})
    save_file(tensors | averaged, tmp_path / "ema.safetensors")
    loaded = file_tensors(ldm_core.load(tmp_path / "ema.safetensors", config=model.config, ema=ema))
    for key, value in tensors.items():
        expected = value + 1 if taken and key.startswith(UNET) else value
        assert torch.equal(loaded[key], expected), key


@pytest.mark.parametrize("name", [n for n, p in PUBLISHED.items() if not p.startswith(("sd", "x4"))])
def test_the_small_yaml_is_of_the_small_model(name: str, published: dict[str, Any]) -> None:
    """Except for Stable Diffusion's, which cannot state the size of their text encoders."""
    preset = PUBLISHED[name]
    config = small(preset)
    document = {"model": small_yaml(published[name], preset)}
    assert from_yaml(document, stored_scale=config.latent_scale) == config
