"""T2I-Adapters against diffusers, style adapters and fusers against plain formulas, and their key maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import T2IAdapter as DiffusersAdapter
from diffusers import UNet2DConditionModel
from support.configs import SMALL_SD1
from support.controls import draw, hint, shaken, tensors_of
from support.reference import relative_error
from torch import Tensor, nn

from ldm_core.checkpoint.key_map import to_file
from ldm_core.control import adapter_names
from ldm_core.control.coadapter import KINDS, CoAdapterFuser, FuserConfig, StyleAdapter, StyleAdapterConfig
from ldm_core.control.control import Control
from ldm_core.control.t2i_adapter import T2IAdapter, T2IAdapterConfig
from ldm_core.model import LatentDiffusion
from ldm_core.nn.placement import blank, parameter_shapes
from ldm_core.unet.names import diffusers_map as unet_diffusers_map
from ldm_core.unet.settings import unet_settings

TOLERANCE = 1e-5  # float32
CHANNELS = (32, 64, 128, 128)
FULL = T2IAdapterConfig(channels=CHANNELS)
LIGHT = T2IAdapterConfig(3, CHANNELS, 4, kind="light")


@pytest.mark.parametrize(
    "config", [FULL, T2IAdapterConfig(1, CHANNELS), LIGHT], ids=["full", "grey", "light"]
)
def test_networks_agree_with_diffusers(config: T2IAdapterConfig) -> None:
    _agree(config)


@pytest.mark.slow  # 77 million parameters, twice
@pytest.mark.parametrize("config", [T2IAdapterConfig(), T2IAdapterConfig(num_res_blocks=4, kind="light")])
def test_full_sizes_agree_with_diffusers(config: T2IAdapterConfig) -> None:
    _agree(config)


def _agree(config: T2IAdapterConfig) -> None:
    light, channels = config.kind == "light", config.channels
    twin = DiffusersAdapter(
        in_channels=config.hint_channels,
        channels=list(channels[:3] if light else channels),
        num_res_blocks=config.num_res_blocks,
        adapter_type=f"{config.kind}_adapter",
    )
    network = shaken(T2IAdapter(config))
    twin.load_state_dict(tensors_of(network, adapter_names.diffusers_map(config)))
    assert adapter_names.adapter_config(dict(twin.config)) == config
    picture = hint(2, config.hint_channels, 128, 64)
    ours = network(picture)
    with torch.no_grad():
        theirs = twin(picture)
    assert [tuple(one.shape) for one in ours] == [tuple(one.shape) for one in theirs]
    assert max(relative_error(a, b) for a, b in zip(ours, theirs)) < TOLERANCE


def test_the_unet_takes_features_as_in_diffusers(model: LatentDiffusion) -> None:
    unet, network = model.unet, shaken(T2IAdapter(FULL))
    settings = {k: v for k, v in unet_settings(SMALL_SD1.unet, 16).items() if k != "_class_name"}
    reference = UNet2DConditionModel(**settings).eval()
    reference.load_state_dict(to_file(unet_diffusers_map(SMALL_SD1.unet), unet.state_dict()))
    x, context, picture = draw(2, 4, 16, 16), draw(2, 7, 64, seed=1), hint(1, 3, 128, 128)
    residuals = Control(network, picture, strength=0.7)(x, 9, context)
    features = [0.7 * feature.expand(2, -1, -1, -1) for feature in network(picture)]
    with torch.no_grad():
        expected = reference(x, 9, context, down_intrablock_additional_residuals=[*features]).sample
    assert relative_error(unet(x, 9, context, residuals=residuals), expected) < TOLERANCE
    assert relative_error(unet(x, 9, context), expected) > 0.01
    both = residuals + Control(network, picture, strength=0.2)(x, 9, context)
    assert torch.allclose(both.features[1], features[1] / 0.7 * 0.9, atol=1e-5)


FILES = {
    "t2iadapter-3channel": (T2IAdapterConfig(), "original"),
    "t2iadapter-1channel": (T2IAdapterConfig(1), "original"),
    "t2iadapter-light": (T2IAdapterConfig(num_res_blocks=4, kind="light"), "original"),
    "t2iadapter-diffusers-full": (T2IAdapterConfig(), "diffusers"),
    "t2iadapter-diffusers-light": (T2IAdapterConfig(num_res_blocks=4, kind="light"), "diffusers"),
    "t2iadapter-style": (StyleAdapterConfig(), "style"),
    "coadapter-fuser": (FuserConfig(), "fuser"),
}


@pytest.mark.parametrize("name", FILES)
def test_published_files_map_one_to_one(name: str, adapters: dict[str, Any]) -> None:
    config, layout = FILES[name]
    shapes = {key: tuple(shape) for key, shape in adapters[name]["tensors"].items()}
    assert getattr(adapter_names, f"{layout}_config")(shapes) == config
    network: Any = {"style": StyleAdapter, "fuser": CoAdapterFuser}.get(layout, T2IAdapter)
    parameters = parameter_shapes(network, config)
    key_map = getattr(adapter_names, f"{layout}_map")(config)
    assert sorted(n for entry in key_map.values() for n in entry.parameters) == sorted(parameters)
    blanks = {key: torch.empty(shape, device="meta") for key, shape in parameters.items()}
    assert {key: tuple(value.shape) for key, value in to_file(key_map, blanks).items()} == shapes
    assert sum(p.numel() for p in blank(network, config).parameters()) == adapters[name]["parameters"]
    if "config" in adapters[name]:
        assert adapter_names.adapter_config(adapters[name]["config"]) == config


def transformer(x: Tensor, tensors: dict[str, Tensor], heads: int) -> Tensor:
    """The authors' blocks, from the file's tensors, with PyTorch's own attention."""
    width = x.shape[-1]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (width,), tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    x = norm(x, "ln_pre")
    for i in range(3):
        block = f"transformer_layes.{i}."
        attention = nn.MultiheadAttention(width, heads, batch_first=True)
        attention.load_state_dict({k: tensors[f"{block}attn.{k}"] for k in attention.state_dict()})
        y = norm(x, f"{block}ln_1")
        x = x + attention(y, y, y, need_weights=False)[0]
        y = linear(norm(x, f"{block}ln_2"), f"{block}mlp.c_fc")
        x = x + linear(y * torch.sigmoid(1.702 * y), f"{block}mlp.c_proj")
    return norm(x, "ln_post")


@torch.no_grad()
def test_style_is_the_plain_formula() -> None:
    network = shaken(StyleAdapter(StyleAdapterConfig(64, 48)))
    tensors, patches = tensors_of(network, adapter_names.style_map(network.config)), draw(2, 10, 64)
    x = torch.cat([patches, tensors["style_embedding"].expand(2, -1, -1)], dim=1)
    expected = transformer(x, tensors, 8)[:, -8:] @ tensors["proj"]
    assert relative_error(network(patches), expected) < TOLERANCE
    assert torch.equal(Control(network, patches).encode((2, 2)).tokens, network(patches))
    with pytest.raises(ValueError, match="needs clip=, the CLIP image encoder"):
        Control(network, hint(1, 3, 8, 8)).encode((2, 2))
    with pytest.raises(ValueError, match=r"expected CLIP's hidden states \(B, N, 64\), got \(2, 10, 32\)"):
        network(patches[:, :, :32])


@torch.no_grad()
def test_fuser_is_the_plain_formula() -> None:
    network = shaken(CoAdapterFuser(FuserConfig((32, 64), width=64)))
    tensors = tensors_of(network, adapter_names.fuser_map(network.config))
    depth, color = ((draw(1, 32, 8, 8, seed=s), draw(1, 64, 4, 4, seed=s + 1)) for s in (1, 3))
    style = draw(1, 8, 64, seed=5)
    features, tokens = network({"depth": depth, "style": style, "color": color})

    def means(values: tuple[Tensor, ...], kind: str) -> Tensor:
        rows = [
            F.linear(
                F.silu(value.mean(dim=(2, 3))),
                tensors[f"spatial_feat_mapping.{i}.1.weight"],
                tensors[f"spatial_feat_mapping.{i}.1.bias"],
            )
            for i, value in enumerate(values)
        ]
        task = tensors["task_embedding"][KINDS.index(kind)]
        return torch.stack(rows, dim=1) + task + tensors["positional_embedding"]

    sequence = torch.cat(
        [means(depth, "depth"), style + tensors["task_embedding"][5], means(color, "color")], 1
    )
    x = transformer(sequence, tensors, 8)

    def scaled(values: tuple[Tensor, ...], at: int, level: int) -> Tensor:
        name = f"spatial_ch_projs.{level}"
        factor = F.linear(x[:, at + level], tensors[f"{name}.weight"], tensors[f"{name}.bias"])
        return values[level] * (1 + factor[:, :, None, None])

    expected = [scaled(depth, 0, level) + scaled(color, 10, level) for level in range(2)]
    assert max(relative_error(a, b) for a, b in zip(features, expected)) < TOLERANCE
    assert relative_error(tokens, style * (1 + x[:, 2:10] @ tensors["seq_proj"])) < TOLERANCE
    with pytest.raises(ValueError, match=r"expected kinds of sketch, keypose, .* not 'pose'"):
        network({"pose": depth})


def test_fused_adapters_are_one_control(model: LatentDiffusion) -> None:
    fuser = shaken(CoAdapterFuser(FuserConfig(CHANNELS, width=64)))
    adapter, picture = shaken(T2IAdapter(FULL)), hint(1, 3, 128, 128)
    control = Control(
        fuser, {"depth": Control(adapter, picture, strength=0.5), "color": Control(adapter, picture)}
    )
    whole = adapter(picture)
    features, _ = fuser({"depth": tuple(0.5 * one for one in whole), "color": whole})
    found = control(draw(1, 4, 16, 16), 3, draw(1, 7, 64))
    assert all(map(torch.equal, found.features, features))
    with pytest.raises(ValueError, match="expected a T2IAdapter for all steps as 'depth'"):
        Control(fuser, {"depth": Control(adapter, picture, end=0.5)})
    with pytest.raises(ValueError, match="a fuser's hint is a mapping of kinds to Controls, not Tensor"):
        Control(fuser, picture)


def test_hidden_states_are_those_of_transformers() -> None:
    """CLIP's last hidden state, and the one before the last block."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from ldm_core.checkpoint.key_map import expand
    from ldm_core.clip.config import ImageEncoderConfig
    from ldm_core.clip.image_encoder import CLIPImageEncoder
    from ldm_core.clip.names import TRANSFORMERS_IMAGE
    from ldm_core.nn.placement import parameter_names

    config = ImageEncoderConfig(32, 8, width=64, layers=3, heads=2, projection_dim=48)
    network = shaken(CLIPImageEncoder(config))
    own = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        projection_dim=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        hidden_act="quick_gelu",
    )
    twin = CLIPVisionModelWithProjection(own).eval()
    key_map = expand(TRANSFORMERS_IMAGE, parameter_names(CLIPImageEncoder, config))
    twin.load_state_dict(tensors_of(network, key_map), strict=False)
    pixels = draw(2, 3, 32, 32)
    with torch.no_grad():
        theirs = twin(pixels, output_hidden_states=True)
    assert relative_error(network.hidden_states(pixels), theirs.last_hidden_state) < TOLERANCE
    assert relative_error(network.hidden_states(pixels, skip=1), theirs.hidden_states[-2]) < TOLERANCE
    assert relative_error(network(pixels), theirs.image_embeds) < TOLERANCE
