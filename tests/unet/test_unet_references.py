"""The U-Net against independent code: diffusers' `UNet2DModel`, and CompVis's network in plain steps."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from support.plain_unet import plain_unet
from support.reference import relative_error
from torch import Tensor, nn

from ldm_core.checkpoint.key_map import to_file, to_parameters
from ldm_core.nn.convolution import set_convolution
from ldm_core.unet import UNet, UNetConfig
from ldm_core.unet.compvis_settings import unet_in_yaml
from ldm_core.unet.deep_cache import DeepCache
from ldm_core.unet.names import compvis_map, diffusers_map
from ldm_core.unet.settings import unet_config, unet_settings

logging.getLogger("diffusers").setLevel(logging.ERROR)
TOLERANCE = 1e-5  # float32: two orders of summation in some dozens of layers

PARAMS: dict[str, Any] = {
    "image_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": [1, 2, 2],
    "attention_resolutions": [2, 4],
    "num_heads": 4,
}
KINDS: dict[str, dict[str, Any]] = {
    "as celeba256": {"num_heads": -1, "num_head_channels": 16, "num_res_blocks": 2},
    "as lsun_churches256": {
        "attention_resolutions": [1, 2], "use_scale_shift_norm": True, "resblock_updown": True,
    },
    "as inpainting_big": {"in_channels": 7, "resblock_updown": True},
    "as semantic_synthesis256": {"in_channels": 6, "channel_mult": [1, 4], "attention_resolutions": [16, 8]},
    "as bsr_sr": {"in_channels": 6, "attention_resolutions": [16, 4], "num_head_channels": 32},
    "one head": {"num_heads": 1},
    "scale-shift alone": {"use_scale_shift_norm": True},
    "labels": {"num_classes": 5},
    "vectors": {"num_classes": "sequential", "adm_in_channels": 6, "use_scale_shift_norm": True},
}  # fmt: skip


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shake(network: nn.Module, seed: int = 0) -> None:
    """Random weights of which none is zero or one, so that no term can hide."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim <= 1:
                parameter += 0.2 * torch.randn_like(parameter)


def stored(config: UNetConfig, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a file in CompVis's layout, drawn in the file's own shapes."""
    network = UNet(config).requires_grad_(False)
    shake(network, seed)
    shapes = to_file(compvis_map(config), dict(network.named_parameters()))
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator) * value.std(correction=0) + value.mean()
        for name, value in shapes.items()
    }


def filled(config: UNetConfig, tensors: dict[str, Tensor]) -> UNet:
    network = UNet(config).eval().requires_grad_(False)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    network.load_state_dict(to_parameters(compvis_map(config), tensors, shapes, source="a file"))
    return network


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kind", KINDS)
def test_as_compvis_computes(kind: str) -> None:
    params = PARAMS | KINDS[kind]
    config = unet_in_yaml({"unet_config": {"params": params}})
    tensors = stored(config)
    network = filled(config, tensors)
    x = draw(2, params["in_channels"], 8, 12)
    y = {"labels": torch.tensor([4, 1]), "vectors": draw(2, 6, seed=1)}.get(kind)
    assert relative_error(network(x, 321.5, y=y), plain_unet(tensors, params, x, 321.5, y)) < TOLERANCE
    wide = y.double() if y is not None and kind == "vectors" else y
    exact = network.double()(x.double(), 0, y=wide)  # at t = 0 the embedding, always float32, is exact
    assert relative_error(exact, plain_unet(tensors, params, x, 0, y)) < 1e-12


def test_the_order_of_heads_is_seen() -> None:
    """The same file, read as of another number of heads, is another network."""
    config = unet_in_yaml({"unet_config": {"params": PARAMS}})
    tensors, x = stored(config), draw(1, 3, 8, 8)
    wrong = plain_unet(tensors, PARAMS | {"num_heads": 2}, x, 5)
    assert relative_error(filled(config, tensors)(x, 5), wrong) > 1e-2
    assert relative_error(filled(replace(config, num_heads=2), tensors)(x, 5), wrong) < TOLERANCE


EXPRESSED = {
    "heads of one size": {"num_heads": None, "num_head_channels": 16},
    "one head": {"num_heads": 1},
    "scale-shift": {"num_heads": 1, "use_scale_shift_norm": True},
    "residual blocks resample": {"num_heads": 1, "resblock_updown": True, "attention_resolutions": (1,)},
    "both, and labels": {
        "num_heads": None, "num_head_channels": 32, "use_scale_shift_norm": True, "resblock_updown": True,
        "num_classes": 5,
    },
    "only the middle attends": {"num_heads": 4, "attention_resolutions": (), "in_channels": 6},
}  # fmt: skip
CROSS = {
    "as cin256-v2": {"num_heads": 1, "channel_mult": (1, 2, 3, 5), "attention_resolutions": (8, 4, 2)},
    "as layout2img": {"num_heads": None, "num_head_channels": 32, "transformer_depth": 3},
    "scale-shift": {"num_heads": 4, "use_scale_shift_norm": True, "use_linear_in_transformer": True},
}
SMALL = UNetConfig(
    in_channels=3, out_channels=3, model_channels=32, channel_mult=(1, 2, 2), num_res_blocks=1,
    attention_resolutions=(2, 4), context_dim=None,
)  # fmt: skip


def in_diffusers(network: UNet) -> Any:
    """diffusers' network with the same weights, built from the settings that we write."""
    settings = unet_settings(network.config, 8)
    kind = UNet2DModel if network.config.context_dim is None else UNet2DConditionModel
    reference = kind.from_config(settings).eval().requires_grad_(False)
    tensors = to_file(diffusers_map(network.config), network.state_dict())
    reference.load_state_dict(tensors)  # strict: all names are there
    return reference


def compare(network: UNet, reference: Any, size: int) -> float:
    config = network.config
    x, t = draw(2, config.in_channels, size, size), torch.tensor([7, 912])
    y = None if config.num_classes is None else torch.tensor([3, 0])
    context = None if config.context_dim is None else draw(2, 5, config.context_dim, seed=1)
    told = {"class_labels": y} if context is None else {"encoder_hidden_states": context}
    set_convolution(network, "direct")
    with torch.no_grad():
        return relative_error(network(x, t, context, y), reference(x, t, **told).sample)


@pytest.mark.parametrize("kind", EXPRESSED)
def test_as_diffusers_computes(kind: str) -> None:
    config = replace(SMALL, **EXPRESSED[kind])  # type: ignore[arg-type]
    network = UNet(config).eval()
    shake(network)
    reference = in_diffusers(network)
    assert compare(network, reference, 8) < TOLERANCE
    read = unet_config(dict(reference.config) | {"_class_name": "UNet2DModel"})
    for level in (*config.attention_levels, -1):
        width = config.model_channels * config.channel_mult[level]
        assert read.heads(width) == config.heads(width)
    heads = {"num_heads": config.num_heads, "num_head_channels": config.num_head_channels}
    assert replace(read, **heads) == config  # heads of one size may be stated as a size or as a number


@pytest.mark.parametrize("kind", CROSS)
def test_as_diffusers_computes_with_cross_attention(kind: str) -> None:
    config = replace(SMALL, context_dim=24, **CROSS[kind])  # type: ignore[arg-type]
    network = UNet(config).eval()
    shake(network)
    reference = in_diffusers(network)
    assert compare(network, reference, 8) < TOLERANCE
    assert unet_config(dict(reference.config) | {"_class_name": "UNet2DConditionModel"}) == config


@pytest.mark.slow  # 274 M weights, twice
def test_celeba_at_full_width(published: dict[str, Any]) -> None:
    config = unet_in_yaml(published["latent-diffusion/ldm/celeba256"]["config"]["params"])
    network = UNet(config).eval().requires_grad_(False)
    shake(network)
    assert compare(network, in_diffusers(network), 16) < TOLERANCE


@pytest.mark.slow  # 295 M weights, twice
def test_churches_at_full_width(published: dict[str, Any]) -> None:
    """diffusers cannot state 8 heads at every level, so they are set in its network afterwards."""
    config = unet_in_yaml(published["latent-diffusion/ldm/lsun_churches256"]["config"]["params"])
    network = UNet(config).eval().requires_grad_(False)
    shake(network)
    settings = unet_settings(replace(config, num_heads=1), 8)
    reference = UNet2DModel.from_config(settings).eval().requires_grad_(False)
    reference.load_state_dict(to_file(diffusers_map(config), network.state_dict()))
    for module in reference.modules():
        if type(module).__name__ == "Attention":
            module.heads, module.scale = 8, (module.inner_dim // 8) ** -0.5  # type: ignore[operator]
    assert compare(network, reference, 16) < TOLERANCE


@torch.no_grad()
def test_deep_cache_of_an_unconditional_network() -> None:
    network = UNet(replace(SMALL, num_heads=2, resblock_updown=True)).eval()
    shake(network)
    fast, x = DeepCache(network, interval=2), draw(1, 3, 8, 8)
    assert torch.equal(fast(x, 900), network(x, 900))
    near = x + 0.01 * draw(1, 3, 8, 8, seed=1)
    assert 0 < relative_error(fast(near, 880), network(near, 880)) < 0.1


@pytest.mark.slow  # traces and exports
@torch.no_grad()
def test_a_compiled_network_without_context() -> None:
    network = UNet(replace(SMALL, num_heads=2, resblock_updown=True, use_scale_shift_norm=True)).eval()
    x = draw(1, 3, 8, 8)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, torch.tensor([7])), network(x, torch.tensor([7])))
    traced = torch.export.export(network, (x, torch.tensor([7]))).module()
    torch.testing.assert_close(traced(x, torch.tensor([9])), network(x, torch.tensor([9])))
