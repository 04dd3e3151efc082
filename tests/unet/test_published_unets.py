"""The U-Nets of all published configurations: each tensor is one parameter, and shapes prove the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_core.checkpoint.key_map import KeyMap, interleaved_qkv, to_file, to_parameters
from ldm_core.errors import ConfigError
from ldm_core.loading.parts import fitted
from ldm_core.loading.weights import blank_network
from ldm_core.unet import UNetConfig
from ldm_core.unet.compvis_settings import unet_in_yaml
from ldm_core.unet.names import compvis_map, diffusers_map
from ldm_core.unet.shapes import blank, compvis_config, diffusers_config, fewest_tensors

PREFIX = "model.diffusion_model."
FOLDERS = {
    "latent-diffusion/latent-diffusion": "celebahq-ldm-vq-4 cin-ldm-vq-f8 cin256-v2 ffhq-ldm-vq-4 "
    "lsun_bedrooms-ldm-vq-4 lsun_churches-ldm-kl-8 txt2img-1p4B-eval",
    "latent-diffusion/retrieval-augmented-diffusion": "768x768",
    "latent-diffusion/ldm": "bsr_sr celeba256 cin256 ffhq256 inpainting_big layout2img-openimages256 "
    "lsun_beds256 lsun_churches256 semantic_synthesis256 semantic_synthesis512 text2img256",
    "stable-diffusion": "v1-inference",
    "stable-diffusion-2": "v2-inference v2-inference-v v2-inpainting-inference v2-midas-inference "
    "v2-1-stable-unclip-h-inference v2-1-stable-unclip-l-inference x4-upscaling",
}
NAMES = [f"{folder}/{name}" for folder, names in FOLDERS.items() for name in names.split()]
EACH = pytest.mark.parametrize("name", NAMES)


def config_of(entry: dict[str, Any]) -> UNetConfig:
    return unet_in_yaml(entry["config"]["params"])


def tensors_of(entry: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    found = {key: tuple(shape) for key, shape in entry["tensors"].items() if key.startswith(PREFIX)}
    return {key.removeprefix(PREFIX): shape for key, shape in found.items()}


def on_meta(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def shapes_in(key_map: KeyMap, parameters: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in to_file(key_map, parameters).items()}


def test_no_published_unet_is_left_out(published: dict[str, Any]) -> None:
    assert sorted(NAMES) == sorted(
        name for name, entry in published.items() if any(key.startswith(PREFIX) for key in entry["tensors"])
    )


@pytest.mark.one_in(3)
@EACH
def test_every_tensor_is_one_parameter_and_back(name: str, published: dict[str, Any]) -> None:
    config, tensors = config_of(published[name]), tensors_of(published[name])
    wanted = {key: value.shape for key, value in blank_network(config).state_dict().items()}
    key_map = compvis_map(config)
    parameters = to_parameters(key_map, on_meta(tensors), wanted, source=name)
    assert parameters.keys() == wanted.keys()
    assert sorted(p for entry in key_map.values() for p in entry.parameters) == sorted(wanted)
    assert shapes_in(key_map, parameters) == tensors


@pytest.mark.one_in(3)
@EACH
def test_shapes_prove_what_they_can(name: str, published: dict[str, Any]) -> None:
    """In both layouts, from the published shapes and from those that diffusers' names give them."""
    config, tensors = config_of(published[name]), tensors_of(published[name])
    assert compvis_config(tensors) == blank(config)
    assert fitted(config, compvis_config(tensors)) == config
    names = diffusers_map(config)
    parameters = dict(blank_network(config).named_parameters())
    assert diffusers_config(shapes_in(names, parameters)) == blank(config)  # type: ignore[arg-type]
    assert fewest_tensors(config) <= min(len(tensors), len(names))


BASE = UNetConfig(
    model_channels=32, channel_mult=(1, 2, 2), num_res_blocks=1, attention_resolutions=(4, 2), num_heads=4
)
OWN = replace(BASE, context_dim=None)
CHANGES = {
    "scale-shift": replace(BASE, use_scale_shift_norm=True),
    "residual blocks resample": replace(BASE, resblock_updown=True),
    "no attention in any level": replace(OWN, attention_resolutions=(), resblock_updown=True),
    "attention at the finest level": replace(OWN, attention_resolutions=(1,), resblock_updown=True),
    "one level": replace(OWN, channel_mult=(1,), attention_resolutions=(1,)),
    "labels": replace(OWN, num_classes=7),
    "vectors": replace(OWN, adm_in_channels=9, use_scale_shift_norm=True),
    "extra channels": replace(OWN, in_channels=7, out_channels=3),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_shapes_prove_networks_that_nobody_published(kind: str) -> None:
    config = CHANGES[kind]
    parameters = dict(blank_network(config).named_parameters())
    for names, proves in ((compvis_map, compvis_config), (diffusers_map, diffusers_config)):
        assert proves(shapes_in(names(config), parameters)) == blank(config)  # type: ignore[arg-type]


def test_what_has_no_effect_is_not_proved() -> None:
    one_level = CHANGES["one level"]
    same = replace(one_level, resblock_updown=True, transformer_depth=3, use_linear_in_transformer=True)
    assert blank(same) == blank(one_level)


def test_the_middle_block_needs_heads_that_divide_its_width() -> None:
    with pytest.raises(ConfigError, match="64 channels are not divisible by num_heads=5"):
        replace(OWN, attention_resolutions=(), num_heads=5)


@pytest.mark.parametrize(
    ("heads", "size", "order"),
    [
        # 4 channels: rows of q, k, v in the file, for one, two and four heads
        (1, None, [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]),
        (2, None, [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]),
        (None, 2, [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]),
        (None, 1, [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]),
    ],
)
def test_queries_keys_and_values_lie_head_by_head(
    heads: int | None, size: int | None, order: list[list[int]]
) -> None:
    transform = interleaved_qkv(heads, size)
    bias = torch.arange(12.0)
    weight = torch.stack([bias, -bias], dim=1)[:, :, None]  # (12, 2, 1)
    assert [part.tolist() for part in transform.load(bias)] == order
    assert [part[:, 1].neg().tolist() for part in transform.load(weight)] == order
    for stored in (bias, weight):
        assert torch.equal(transform.save(transform.load(stored)), stored)
    assert torch.equal(transform.save(transform.load(weight[:, :, 0])), weight)  # stored as a linear layer
    for wrong in (
        torch.zeros(7),
        torch.zeros(0),
        torch.zeros(()),
        torch.zeros(12, 2, 3),
        torch.zeros(7, 2, 1),
    ):
        with pytest.raises(ValueError, match="expected"):
            transform.load(wrong)
