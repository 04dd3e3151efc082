"""The published models of latent diffusion: files of their tensors, and small models of their structure."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_core.bert.config import BERTConfig, LayoutConfig
from ldm_core.conditioners.class_embedder import ClassEmbedderConfig
from ldm_core.conditioners.retrieval import RetrievalConfig
from ldm_core.conditioners.unclip import UnclipConfig
from ldm_core.config import PRESETS, AutoencoderVQConfig, LatentDiffusionConfig
from ldm_core.loading.find import ema_key
from ldm_core.loading.parts import part_of
from ldm_core.nn.placement import blank
from ldm_core.noise_schedule import betas_of

# Each published configuration with a U-Net, and its preset.
PUBLISHED = {
    **{
        f"latent-diffusion/latent-diffusion/{name}": preset
        for name, preset in {
            "celebahq-ldm-vq-4": "celeba256",
            "cin-ldm-vq-f8": "cin256",
            "cin256-v2": "cin256-v2",
            "ffhq-ldm-vq-4": "ffhq256",
            "lsun_bedrooms-ldm-vq-4": "lsun-beds256",
            "lsun_churches-ldm-kl-8": "lsun-churches256",
            "txt2img-1p4B-eval": "text2img-large",
        }.items()
    },
    **{
        f"latent-diffusion/ldm/{name}": preset
        for name, preset in {
            "bsr_sr": "bsr-sr",
            "celeba256": "celeba256",
            "cin256": "cin256",
            "ffhq256": "ffhq256",
            "inpainting_big": "inpainting-big",
            "layout2img-openimages256": "layout2img256",
            "lsun_beds256": "lsun-beds256",
            "lsun_churches256": "lsun-churches256",
            "semantic_synthesis256": "semantic-synthesis256",
            "semantic_synthesis512": "semantic-synthesis512",
            "text2img256": "text2img256",
        }.items()
    },
    "latent-diffusion/retrieval-augmented-diffusion/768x768": "rdm768",
    "stable-diffusion/v1-inference": "sd1",
    **{
        f"stable-diffusion-2/{name}": preset
        for name, preset in {
            "v2-inference": "sd2-base",
            "v2-inference-v": "sd2-v",
            "v2-inpainting-inference": "sd2-inpaint",
            "v2-midas-inference": "sd2-depth",
            "v2-1-stable-unclip-h-inference": "sd2-unclip-h",
            "v2-1-stable-unclip-l-inference": "sd2-unclip-l",
            "x4-upscaling": "x4-upscaler",
        }.items()
    },
}
UNET = "model.diffusion_model."
WIDTH = 128  # of the conditions of small models
SCALE = 0.2208  # what a trainer may have measured
TABLES = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
]

Shapes = Mapping[str, Any]


def trainer_tensors(preset: str, tensors: Shapes) -> dict[str, Tensor]:
    """The tensors of a published file besides its networks' parameters, blank except for small ones."""
    config = PRESETS[preset]
    extra = {name: torch.empty(1000, device="meta") for name in TABLES}
    extra["betas"] = betas_of(config.noise_schedule).float()
    if preset == "lsun-churches256":
        extra["scale_factor"] = torch.tensor(SCALE)
    if config.use_ema:
        extra |= averages({k: torch.empty(shape, device="meta") for k, shape in tensors.items()})
    if preset in ("bsr-sr", "inpainting-big"):  # saved after a sampler had left its tables in the model
        names = ("sigmas", "alphas", "alphas_prev", "sqrt_one_minus_alphas")
        extra |= {f"ddim_{name}": torch.empty(200, device="meta") for name in names}
    others = {
        "first_stage_model.loss.logvar": [],
        "first_stage_model.loss.discriminator.main.0.weight": [64, 3, 4, 4],
        "first_stage_model.loss.perceptual_loss.lin0.model.1.weight": [1, 64, 1, 1],
    }
    if preset == "inpainting-big":
        stage = {k: shape for k, shape in tensors.items() if k.startswith("first_stage_model.")}
        others |= {k.replace("first_stage_model.", "cond_stage_model."): shape for k, shape in stage.items()}
    if preset.startswith("sd2-unclip"):
        others |= {f"noise_augmentor.{name}": [1000] for name in TABLES}
        others["embedder.model.logit_scale"] = []
    if preset == "sd2-depth":
        others["depth_model.model.pretrained.model.cls_token"] = [1, 1, 768]
    if preset == "x4-upscaler":
        others |= {f"low_scale_model.{name}": [1000] for name in TABLES}
    extra |= {name: torch.empty(shape, device="meta") for name, shape in others.items()}
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    return extra | ({ids: torch.arange(77)[None]} if ids in tensors else {})


def image_encoder_shapes(config: UnclipConfig) -> dict[str, list[int]]:
    """The shapes of unCLIP's image encoder by its keys in files."""
    part = part_of(config)
    shapes = {name: list(p.shape) for name, p in blank(part.network, config).state_dict().items()}
    key_map = part.layout("compvis").key_map(config)
    stored = {
        key: list(
            entry.transform.save(tuple(torch.empty(shapes[n], device="meta") for n in entry.parameters)).shape
        )
        for key, entry in key_map.items()
    }
    return {key: shape for key, shape in stored.items() if key.startswith("embedder.")}


def averages(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights of a file's U-Net and their counters."""
    unet = {key: value for key, value in tensors.items() if key.startswith(UNET)}
    return {
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(470000, dtype=torch.int32),
        **{ema_key(key.removeprefix(UNET)): value for key, value in unet.items()},
    }


def write_blank(tensors: Mapping[str, Tensor], path: Path) -> Path:
    """A .safetensors file of these tensors in which those on the meta device are holes of zeros."""
    kinds = {torch.float32: "F32", torch.int32: "I32", torch.int64: "I64"}
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + tensor.nbytes
        header[name] = {
            "dtype": kinds[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
        for name, tensor in tensors.items():
            if not tensor.is_meta:
                file.seek(8 + len(text) + header[name]["data_offsets"][0])
                file.write(tensor.numpy().tobytes())
    return path


def small(preset: str, blocks: int = 1) -> LatentDiffusionConfig:
    """A model of the same structure with narrow networks, few layers and small pictures.

    blocks: residual blocks of each level of the U-Net and the autoencoder, which are 2 in published models.
    """
    config = PRESETS[preset]
    width = None if config.unet.context_dim is None else WIDTH
    text: Any = config.text_encoder
    if isinstance(text, BERTConfig):
        text = replace(text, width=width, layers=2)
    elif text is not None:
        text = replace(text, width=width, layers=3, heads=2, projection_dim=text.projection_dim and WIDTH)
    conditioner = config.conditioner
    if isinstance(conditioner, LayoutConfig):
        conditioner = replace(conditioner, width=width, layers=2)
    elif isinstance(conditioner, ClassEmbedderConfig | RetrievalConfig):
        conditioner = replace(conditioner, width=width)
    elif isinstance(conditioner, UnclipConfig):
        conditioner = replace(conditioner, width=WIDTH // 4, image_encoder=None, statistics=False)
    unet = replace(
        config.unet,
        model_channels=32,
        num_res_blocks=blocks,
        num_head_channels=config.unet.num_head_channels and 16,
        context_dim=width,
        adm_in_channels=config.unet.adm_in_channels and WIDTH // 2,
    )
    autoencoder = replace(config.autoencoder, ch=32, num_res_blocks=blocks)
    if isinstance(autoencoder, AutoencoderVQConfig):
        autoencoder = replace(autoencoder, n_embed=64)
    return replace(
        config,
        text_encoder=text,
        unet=unet,
        autoencoder=autoencoder,
        conditioner=conditioner,
        image_size=2 * config.size_multiple,
    )


def small_yaml(entry: Mapping[str, Any], preset: str, blocks: int = 1) -> dict[str, Any]:
    """A published YAML document's "model" section for the model of `small`."""
    model, config = copy.deepcopy(dict(entry["config"])), small(preset)
    params = model["params"]
    params["image_size"] = config.image_size // config.autoencoder.downsampling
    unet, stage = (params[f"{name}_config"]["params"] for name in ("unet", "first_stage"))
    unet |= {"model_channels": 32, "num_res_blocks": blocks, "context_dim": config.unet.context_dim}
    unet |= {"num_head_channels": 16} if unet.get("num_head_channels", -1) != -1 else {}
    unet |= {"adm_in_channels": WIDTH // 2} if "adm_in_channels" in unet else {}
    stage["ddconfig"] |= {"ch": 32, "num_res_blocks": blocks}
    stage |= {"n_embed": 64} if "n_embed" in stage else {}
    if isinstance(params["cond_stage_config"], dict) and params["cond_stage_config"].get("params"):
        given = params["cond_stage_config"]["params"]
        sizes = {"n_embed": WIDTH, "embed_dim": WIDTH, "n_layer": 2}
        given |= {name: value for name, value in sizes.items() if name in given}
    if "noise_aug_config" in params:
        params["noise_aug_config"]["params"]["timestep_dim"] = WIDTH // 4
    return model
