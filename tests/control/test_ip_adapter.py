"""IP-Adapter against diffusers, its files, and its removal."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from support.configs import SMALL_SD1
from support.controls import draw, shaken, tensors_of
from support.lora_own import write_unet_lora
from support.random_models import random_model
from support.reference import relative_error
from torch import Tensor

import ldm_core
from ldm_core.checkpoint.key_map import to_file
from ldm_core.clip.config import ImageEncoderConfig
from ldm_core.clip.image_encoder import CLIPImageEncoder
from ldm_core.control.image_projection import IPAdapter, IPAdapterConfig
from ldm_core.control.ip_adapter import cross_attentions
from ldm_core.control.ip_names import ip_adapter_config, ip_adapter_map
from ldm_core.model import LatentDiffusion
from ldm_core.nn.placement import blank, parameter_shapes
from ldm_core.unet.names import compvis_map
from ldm_core.unet.names import diffusers_map as unet_diffusers_map
from ldm_core.unet.network import UNet
from ldm_core.unet.settings import unet_settings

TOLERANCE = 1e-5  # float32
WIDTHS = (32, 32, 64, 64, 128, 128, 128, 128, 128, 64, 64, 64, 32, 32, 32, 128)
CONFIGS = {
    "base": IPAdapterConfig("base", 48, 64, 4, channels=WIDTHS),
    "plus": IPAdapterConfig("plus", 64, 64, 16, width=128, channels=WIDTHS),
    "full": IPAdapterConfig("full", 64, 64, 257, channels=WIDTHS),
}
ENCODER = ImageEncoderConfig(32, 2, width=64, layers=3, heads=2, projection_dim=48)


@pytest.fixture
def own() -> LatentDiffusion:
    return random_model(SMALL_SD1)


def written(kind: str, folder: Path, suffix: str = ".safetensors") -> Path:
    config, path = CONFIGS[kind], folder / f"ip-{kind}{suffix}"
    tensors = tensors_of(shaken(IPAdapter(config)), ip_adapter_map(config))
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(parts_of(tensors), path)
    return path


def parts_of(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The two dictionaries of a .bin file."""
    return {
        part: {key[len(part) + 1 :]: value for key, value in tensors.items() if key.startswith(part)}
        for part in ("image_proj", "ip_adapter")
    }


def embeddings(kind: str, rows: int = 2) -> Tensor:
    return draw(rows, 48, seed=7) if kind == "base" else draw(rows, 257, 64, seed=7)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("kind", CONFIGS)
def test_networks_agree_with_diffusers(kind: str, own: LatentDiffusion, tmp_path: Path) -> None:
    """Projection and attention of all 16 layers, from a file in both formats."""
    x, context = draw(2, 4, 16, 16), draw(2, 7, 64, seed=1)
    settings = {k: v for k, v in unet_settings(SMALL_SD1.unet, 16).items() if k != "_class_name"}
    reference = UNet2DConditionModel(**settings).eval()
    reference.load_state_dict(to_file(unet_diffusers_map(SMALL_SD1.unet), own.unet.state_dict()))
    path = written(kind, tmp_path, ".bin")
    reference._load_ip_adapter_weights([torch.load(path)])
    for processor in reference.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.6]
    vectors = embeddings(kind)
    with torch.no_grad():
        added = {"image_embeds": [vectors[:, None]]}
        expected = reference(x, 9, context, added_cond_kwargs=added).sample
    plain = own.unet(x, 9, context)
    handle = ldm_core.apply_ip_adapter(own, written(kind, tmp_path))
    tokens = handle.project(vectors)
    with handle.using(tokens, 0.6):
        ours = own.unet(x, 9, context)
    assert relative_error(ours, expected) < TOLERANCE
    assert relative_error(plain, expected) > 1e-3
    with handle.using(tokens, 0):
        assert torch.equal(own.unet(x, 9, context), plain)
    assert torch.equal(own.unet(x, 9, context), plain)
    again = ldm_core.apply_ip_adapter(own, path)
    handle.remove()
    with again.using(tokens, 0.6):
        assert torch.equal(own.unet(x, 9, context), ours)
    again.remove()
    assert torch.equal(own.unet(x, 9, context), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in own.unet.modules())
    with pytest.raises(ValueError, match="was removed"), again.using(tokens):
        pass


@pytest.mark.slow  # a U-Net and its twin, 7 GB
@torch.no_grad()
def test_the_full_size_agrees_with_diffusers(tmp_path: Path) -> None:
    """The base adapter in SD1's U-Net: embeddings of 1,024 numbers, four tokens, 16 layers."""
    config = IPAdapterConfig()
    adapter = shaken(IPAdapter(config))
    torch.save(parts_of(tensors_of(adapter, ip_adapter_map(config))), tmp_path / "ip.bin")
    torch.manual_seed(0)
    unet = UNet(ldm_core.config.SD1.unet).eval().requires_grad_(False)
    settings = {k: v for k, v in unet_settings(ldm_core.config.SD1.unet, 64).items() if k != "_class_name"}
    reference = UNet2DConditionModel(**settings).eval()
    reference.load_state_dict(to_file(unet_diffusers_map(ldm_core.config.SD1.unet), unet.state_dict()))
    reference._load_ip_adapter_weights([torch.load(tmp_path / "ip.bin")])
    x, context, vectors = draw(1, 4, 16, 16), draw(1, 77, 768, seed=1), draw(1, 1024, seed=7)
    added = {"image_embeds": [vectors[:, None]]}
    expected = reference(x, 9, context, added_cond_kwargs=added).sample
    del reference
    model = replace(random_model(SMALL_SD1), unet=unet, config=ldm_core.config.SD1)
    plain = unet(x, 9, context)
    handle = ldm_core.apply_ip_adapter(model, tmp_path / "ip.bin")
    with handle.using(handle.project(vectors), 1.0):
        assert relative_error(unet(x, 9, context), expected) < TOLERANCE
    assert relative_error(plain, expected) > 1e-3
    handle.remove()
    assert torch.equal(unet(x, 9, context), plain)


NAMES = (
    "ip-adapter_sd15 (also _light, _vit-G with clip_embeddings_dim 1280)",
    "ip-adapter-plus_sd15 and ip-adapter-plus-face_sd15",
    "ip-adapter-full-face_sd15",
)


@pytest.mark.parametrize("name", NAMES)
def test_published_files_map_one_to_one(name: str, adapters: dict[str, Any]) -> None:
    shapes = {key: tuple(shape) for key, shape in adapters[name]["tensors"].items()}
    config = ip_adapter_config(shapes)
    assert config.tokens == adapters[name]["tokens"]
    assert config.channels == IPAdapterConfig().channels
    key_map, parameters = ip_adapter_map(config), parameter_shapes(IPAdapter, config)
    assert sorted(n for entry in key_map.values() for n in entry.parameters) == sorted(parameters)
    blanks = {key: torch.empty(shape, device="meta") for key, shape in parameters.items()}
    assert {key: tuple(value.shape) for key, value in to_file(key_map, blanks).items()} == shapes
    unet = blank(UNet, ldm_core.config.SD1.unet)
    assert tuple(layer.to_k.out_features for layer in cross_attentions(unet).values()) == config.channels


def test_layers_have_the_published_order(adapters: dict[str, Any]) -> None:
    """1 to 11 on the way down, 13 to 29 on the way up, 31 in the middle."""
    unet = blank(UNet, ldm_core.config.SD1.unet)
    files = {name: key for key, entry in compvis_map(unet.config).items() for name in entry.parameters}
    order = adapters["ip-adapter layer numbers, SD1.5"]["order"]
    for i, name in enumerate(cross_attentions(unet)):
        key = f"model.diffusion_model.{files[f'{name}.to_k.weight']}"
        assert key == order[str(2 * i + 1)]["compvis"] + ".to_k.weight"


def test_scale_by_layer_and_rows(own: LatentDiffusion, tmp_path: Path) -> None:
    handle = ldm_core.apply_ip_adapter(own, written("base", tmp_path))
    x, context = draw(2, 4, 16, 16), draw(2, 7, 64, seed=1)
    tokens = handle.project(embeddings("base"))
    with handle.using(tokens, dict.fromkeys(handle.layers, 0.5)):
        by_layer = own.unet(x, 9, context)
    with handle.using(tokens, 0.5):
        assert torch.equal(own.unet(x, 9, context), by_layer)
    with handle.using(tokens, {handle.layers[-1]: 0.5}):
        assert not torch.equal(own.unet(x, 9, context), by_layer)
    with handle.using(tokens[:1], 0.5):
        assert torch.allclose(own.unet(x, 9, context)[:1], by_layer[:1], atol=1e-5)
    with (
        pytest.raises(ValueError, match=r"no layer 'mid'; expected names such as down\.0"),
        handle.using(tokens, {"mid": 1}),
    ):
        pass
    with (
        handle.using(tokens.repeat(2, 1, 1)[:3]),
        pytest.raises(ValueError, match=r"one per row of x \(2\), got 3"),
    ):
        own.unet(x, 9, context)
    with pytest.raises(ValueError, match=r"expected image embeddings of \(B, 48\), got \(2, 64\)"):
        handle.project(draw(2, 64))
    twin = copy.deepcopy(own.unet)  # hooks and all
    assert torch.equal(twin(x, 9, context), own.unet(x, 9, context))


def test_queries_are_those_of_a_lora_in_any_order(own: LatentDiffusion, tmp_path: Path) -> None:
    path = write_unet_lora(own, lambda name, _: name.endswith("attn2.to_q"), tmp_path / "lora.safetensors")
    handle = ldm_core.apply_ip_adapter(own, written("base", tmp_path))
    lora = ldm_core.apply_lora(own, path)  # after the IP-Adapter's hooks
    x, context = draw(2, 4, 16, 16), draw(2, 7, 64, seed=1)
    with handle.using(handle.project(embeddings("base"))):
        live = own.unet(x, 9, context)
        lora.fuse()
        fused = own.unet(x, 9, context)
        lora.unfuse()
        assert torch.equal(own.unet(x, 9, context), live)
        lora.scale = 0
        assert relative_error(own.unet(x, 9, context), fused) > 0.01
    assert relative_error(live, fused) < TOLERANCE


@pytest.mark.one_in(5)
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_sampler_takes_pictures(kind: str, own: LatentDiffusion, tmp_path: Path) -> None:
    """The unconditional half sees no picture; several pictures; scale 0; own vectors."""
    clip = shaken(CLIPImageEncoder(ENCODER))
    sampler = ldm_core.Sampler(own)
    red, blue = (Image.new("RGB", (40, 40), color) for color in ("red", "blue"))
    options: dict[str, Any] = {"steps": 2, "seed": 1, "output": "latent"}
    plain = sampler.txt2img("a cat", **options)
    with pytest.raises(ValueError, match="the model, which has no IP-Adapter: call apply_ip_adapter"):
        sampler.txt2img("a cat", image_prompt=red, **options)
    handle = ldm_core.apply_ip_adapter(own, written(kind, tmp_path), clip=clip)
    assert torch.equal(sampler.txt2img("a cat", image_prompt=red, image_scale=0, **options), plain)
    drawn = sampler.txt2img("a cat", image_prompt=red, image_scale=0.6, **options)
    assert relative_error(drawn, plain) > 1e-3
    both = sampler.txt2img("a cat", image_prompt=[red, blue], image_scale=0.6, **options)
    assert not torch.equal(both, drawn)
    pixels = ldm_core.clip.preprocess(red, ENCODER)
    own_vectors = clip(pixels) if kind == "base" else clip.hidden_states(pixels, skip=1)
    assert torch.equal(sampler.txt2img("a cat", image_prompt=own_vectors, image_scale=0.6, **options), drawn)

    x = draw(1, 4, 8, 8)
    cond, uncond = own.condition("a cat").context, own.condition("").context
    nothing = torch.zeros(1, 48) if kind == "base" else clip.hidden_states(torch.zeros(1, 3, 32, 32), skip=1)
    with handle.using(torch.cat([handle.project(nothing), handle.project(own_vectors)]), 0.6):
        e_u, e_c = own.unet(torch.cat([x, x]), 999, torch.cat([uncond, cond])).chunk(2)
    seen = []

    class Keep(ldm_core.ClassifierFreeGuidance):
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(super().__call__(*args, **kwargs))
            return seen[-1]

    one = {"steps": 1, "noise": x, "timesteps": [(999, -1)], "output": "latent"}
    ldm_core.Sampler(own, guidance=Keep()).txt2img("a cat", image_prompt=red, image_scale=0.6, **one)
    assert relative_error(seen[0], e_u + 7.5 * (e_c - e_u)) < 10 * TOLERANCE  # of two predictions
    handle.remove()
    assert torch.equal(sampler.txt2img("a cat", **options), plain)


def test_bad_files(own: LatentDiffusion, tmp_path: Path) -> None:
    def refused(tensors: dict[str, Tensor], words: str, **options: Any) -> None:
        path = tmp_path / "x.safetensors"
        save_file(tensors, path)
        with pytest.raises(ldm_core.CheckpointError, match=words) as error:
            ldm_core.apply_ip_adapter(own, path, **options)
        assert "\n" not in str(error.value)

    config = CONFIGS["base"]
    good = tensors_of(shaken(IPAdapter(config)), ip_adapter_map(config))
    face = {**good, "ip_adapter.0.to_q_lora.down.weight": torch.ones(4, 32)}
    refused(face, "x.safetensors is an IP-Adapter FaceID")
    refused({"a": torch.ones(1)}, "contains no IP-Adapter")
    wide = {k: torch.ones(v.shape[0], 96) if "_ip." in k else v for k, v in good.items()}
    refused(wide, "is for another model: its context width is 96, the model's 64")
    xl = {k: torch.ones(v.shape[0], 2048) if "_ip." in k else v for k, v in good.items()}
    refused(xl, "is an IP-Adapter for Stable Diffusion XL, which is not supported")
    fewer = {k: v for k, v in good.items() if not k.startswith("ip_adapter.31")}
    refused(fewer, "its number of attention layers is 15, the model's 16")
    small = CLIPImageEncoder(ImageEncoderConfig(32, 8, width=64, layers=1, heads=2, projection_dim=32))
    refused(good, "made for image embeddings of 48 numbers; this CLIP's have 32", clip=small)
    assert "_image_adapters" not in vars(own.unet)
    handle = ldm_core.apply_ip_adapter(own, written("plus", tmp_path))
    with pytest.raises(ValueError, match=r"needs the CLIP image encoder .* clip=…"):
        ldm_core.Sampler(own).txt2img("a cat", image_prompt=Image.new("RGB", (8, 8)), steps=1)
    report = ldm_core.inspect(written("plus", tmp_path))
    assert report.family == "an IP-Adapter"
    assert report.load.startswith("ldm_core.apply_ip_adapter(model, ")
    handle.remove()
