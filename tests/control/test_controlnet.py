"""ControlNet against diffusers' `ControlNetModel`, its key maps, and what a new one does: nothing."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from support.configs import SMALL_SD1, SMALL_SD2
from support.controls import controlnet, draw, hint, shaken
from support.reference import relative_error
from torch import Tensor

from ldm_core.checkpoint.key_map import to_file
from ldm_core.control import shapes
from ldm_core.control.config import ControlNetConfig
from ldm_core.control.control import Control
from ldm_core.control.controlnet import ControlNet, transferred
from ldm_core.control.names import compvis_map, diffusers_map
from ldm_core.control.settings import controlnet_config, controlnet_settings
from ldm_core.model import LatentDiffusion
from ldm_core.nn.placement import blank, parameter_shapes
from ldm_core.unet.names import diffusers_map as unet_diffusers_map
from ldm_core.unet.network import UNet
from ldm_core.unet.residuals import Residuals
from ldm_core.unet.settings import unet_settings

logging.getLogger("diffusers").setLevel(logging.ERROR)
TOLERANCE = 1e-5  # float32: two orders of summation in some dozens of layers
SIZE = 8  # h and w


def config_of(unet: Any, **values: Any) -> ControlNetConfig:
    return ControlNetConfig(**{**vars(unet), **values})


def diffusers_twin(network: ControlNet) -> ControlNetModel:
    settings = controlnet_settings(network.config)
    twin = ControlNetModel(**{k: v for k, v in settings.items() if k != "_class_name"}).eval()
    twin.load_state_dict(to_file(diffusers_map(network.config), network.state_dict()))
    return twin.requires_grad_(False)


def inputs(rows: int = 2, width: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.tensor([3, 700])[:rows]
    return draw(rows, 4, SIZE, SIZE), t, draw(rows, 7, width, seed=1)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("unet", [SMALL_SD1.unet, SMALL_SD2.unet], ids=["sd1", "sd2"])
def test_networks_agree_with_diffusers(unet: Any) -> None:
    """Residuals, and the U-Net that takes them; hints of two channels and of another size."""
    config = config_of(unet, hint_channels=2)
    network = shaken(ControlNet(config))
    twin, picture = diffusers_twin(network), hint(2, 2, 8 * SIZE, 8 * SIZE)
    x, t, context = inputs()
    ours = network(x, t, context, picture)
    down, middle = twin(x, t, context, picture, return_dict=False)
    assert len(ours.skips) == len(down) == 12
    for mine, theirs in zip((*ours.skips, ours.middle), (*down, middle)):
        assert relative_error(mine, theirs) < TOLERANCE

    plain = shaken(UNet(unet), seed=1)
    settings = {k: v for k, v in unet_settings(unet, SIZE).items() if k != "_class_name"}
    reference = UNet2DConditionModel(**settings).eval()
    reference.load_state_dict(to_file(unet_diffusers_map(unet), plain.state_dict()))
    with torch.no_grad():
        expected = reference(
            x, t, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
    assert relative_error(plain(x, t, context, residuals=ours), expected) < TOLERANCE
    assert relative_error(plain(x, t, context), expected) > 0.01


def test_guess_mode_of_both_kinds(model: LatentDiffusion) -> None:
    """The author's ramp 0.825^(12 - i), and diffusers' logspace(-1, 0, 13)."""
    network, picture = controlnet(model), hint(1, 3, 8 * SIZE, 8 * SIZE)
    x, t, context = inputs(rows=1)
    plain = network(x, t, context, picture)
    ours = Control(network, picture, strength=1.5, guess=True)(x, t, context)
    for i, (mine, whole) in enumerate(zip((*ours.skips, ours.middle), (*plain.skips, plain.middle))):
        assert relative_error(mine, whole * 1.5 * 0.825 ** (12 - i)) < 1e-6
    theirs = diffusers_twin(network)(
        x, t, context, picture, conditioning_scale=1.5, guess_mode=True, return_dict=False
    )
    ours = Control(network, picture, strength=1.5, guess="diffusers")(x, t, context)
    for mine, other in zip((*ours.skips, ours.middle), (*theirs[0], theirs[1])):
        assert relative_error(mine, other) < TOLERANCE


def test_global_pooling_and_the_middle_alone(model: LatentDiffusion) -> None:
    network, picture = controlnet(model), hint(1, 3, 8 * SIZE, 8 * SIZE)
    x, t, context = inputs()
    plain = Control(network, picture, strength=0.5)(x, t, context)
    middle = Control(network, picture, strength=0.5, mid_only=True)(x, t, context)
    assert middle.skips == ()
    assert torch.equal(middle.middle, plain.middle)
    network.config = replace(network.config, global_pool=True)
    for guess in (False, True):  # whose ramp is then not applied
        pooled = Control(network, picture, strength=0.5, guess=guess)(x, t, context)
        for mine, whole in zip((*pooled.skips, pooled.middle), (*plain.skips, plain.middle)):
            assert torch.equal(mine, whole.mean(dim=(2, 3), keepdim=True))
    assert model.unet(x, t, context, residuals=pooled).shape == x.shape


def test_a_new_network_changes_nothing(model: LatentDiffusion) -> None:
    """Zero convolutions: the same bits, whatever the hint is. Strength 0 is not even evaluated."""
    x, t, context = inputs()
    plain = model.unet(x, t, context)
    new = ControlNet.of(model.unet)
    for seed in range(2):
        residuals = Control(new, hint(1, 3, 8 * SIZE, 8 * SIZE, seed=seed))(x, t, context)
        assert torch.equal(model.unet(x, t, context, residuals=residuals), plain)
    off = Control(controlnet(model), "no picture", strength=0)(x, t, context)
    assert torch.equal(model.unet(x, t, context, residuals=off), plain)
    assert off.skips == ()
    gradients = list(new.requires_grad_(True).zero_convs[0].parameters())
    loss = model.unet(x, t, context, residuals=new(x, t, context, hint(2, 3, 8 * SIZE, 8 * SIZE))).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in gradients)


def test_residuals_add_up(model: LatentDiffusion) -> None:
    x, t, context = inputs(rows=1)
    a, b = (
        Control(controlnet(model, seed), hint(1, 3, 8 * SIZE, 8 * SIZE, seed=seed), strength=0.3)(
            x, t, context
        )
        for seed in (1, 2)
    )
    both = a + b
    assert torch.equal(both.skips[3], a.skips[3] + b.skips[3])
    assert torch.equal(both.middle, a.middle + b.middle)
    assert (Residuals() + a).skips == a.skips
    with pytest.raises(ValueError, match="cannot add 12 and 3 skips"):
        a + Residuals(b.skips[:3])
    with pytest.raises(ValueError, match="expected 12 skip connections, got 3"):
        model.unet(x, t, context, residuals=Residuals(b.skips[:3]))
    with pytest.raises(ValueError, match=r"residuals: expected \(1, 32, 8, 8\), got \(1, 32, 4, 8\)"):
        model.unet(x, t, context, residuals=a.map(lambda r: r[:, :, ::2]))


@pytest.mark.slow  # two U-Nets and two ControlNets
def test_transfer_to_another_base(model: LatentDiffusion) -> None:
    """What was learned stays, and the copy of the old U-Net becomes one of the new."""
    new = shaken(UNet(SMALL_SD1.unet), seed=5)
    moved = transferred(ControlNet.of(model.unet), model.unet, new).state_dict()
    for name, value in ControlNet.of(new).state_dict().items():
        if name not in dict(new.named_parameters()):
            continue
        assert torch.allclose(moved[name], value, atol=1e-6), name
    learned = controlnet(model)
    kept = transferred(learned, model.unet, new)
    assert torch.equal(kept.zero_convs[3].weight, learned.zero_convs[3].weight)
    assert torch.equal(kept.hint.conv_in.weight, learned.hint.conv_in.weight)
    with pytest.raises(ValueError, match=r"the U-Nets' and the ControlNet's .* differ in shape"):
        transferred(learned, model.unet, UNet(replace(SMALL_SD1.unet, context_dim=32)))


@pytest.mark.parametrize("name", ["controlnet-sd15", "controlnet-sd21"])
def test_published_files_map_one_to_one(name: str, adapters: dict[str, Any]) -> None:
    """Both layouts, and each of diffusers' names to the original one that is its own."""
    original = {k.removeprefix("control_model."): tuple(v) for k, v in adapters[name]["tensors"].items()}
    config = shapes.compvis_config(original)
    assert (config.context_dim, config.hint_channels, config.hint_widths) == (
        adapters[name]["config"]["context_dim"], 3, (16, 32, 96, 256),
    )  # fmt: skip
    theirs = {k: tuple(v) for k, v in adapters[f"{name}-diffusers"]["tensors"].items()}
    assert shapes.diffusers_config(theirs) == config
    maps = {"compvis": compvis_map(config), "diffusers": diffusers_map(config)}
    parameters = parameter_shapes(ControlNet, config)
    for key_map, files in ((maps["compvis"], original), (maps["diffusers"], theirs)):
        assert set(key_map) == set(files)
        assert sorted(n for entry in key_map.values() for n in entry.parameters) == sorted(parameters)
        blanks = {name: torch.empty(shape, device="meta") for name, shape in parameters.items()}
        assert {k: tuple(v.shape) for k, v in to_file(key_map, blanks).items()} == files
    sizes = sum(parameter.numel() for parameter in blank(ControlNet, config).parameters())
    assert sizes == adapters[name]["parameters"]
    for key, named in adapters[f"{name}-diffusers"].get("compvis_name", {}).items():
        assert maps["compvis"][named.removeprefix("control_model.")] == maps["diffusers"][key]


def test_settings_of_diffusers(adapters: dict[str, Any]) -> None:
    for name, unet in (("controlnet-sd15", {"num_heads": 8}), ("controlnet-sd21", {"num_head_channels": 64})):
        config = controlnet_config(adapters[f"{name}-diffusers"]["config"])
        assert {k: getattr(config, k) for k in unet} == unet
        original = {k.removeprefix("control_model."): tuple(v) for k, v in adapters[name]["tensors"].items()}
        assert shapes.blank(config) == shapes.compvis_config(original)
        assert controlnet_config(controlnet_settings(config)) == config
    pooled = controlnet_config({"cross_attention_dim": 768, "global_pool_conditions": True})
    assert pooled.global_pool
    with pytest.raises(ValueError, match="channel_order is 'bgr'; expected one of rgb"):
        controlnet_config({"cross_attention_dim": 768, "controlnet_conditioning_channel_order": "bgr"})


@pytest.mark.slow  # 361 million parameters, twice
def test_full_size_agrees_with_diffusers(adapters: dict[str, Any]) -> None:
    config = controlnet_config(adapters["controlnet-sd15-diffusers"]["config"])
    network = shaken(ControlNet(config))
    x, t, context = inputs(rows=1, width=768)
    picture = hint(1, 3, 8 * SIZE, 8 * SIZE)
    ours = network(x, t, context, picture)
    down, middle = diffusers_twin(network)(x, t, context, picture, return_dict=False)
    for mine, theirs in zip((*ours.skips, ours.middle), (*down, middle)):
        assert relative_error(mine, theirs) < TOLERANCE
