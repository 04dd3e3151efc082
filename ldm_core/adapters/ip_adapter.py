"""Applies an IP-Adapter, with which pictures are a part of the prompt, to a model, and removes it.

    handle = apply_ip_adapter(model, "ip-adapter_sd15.safetensors", clip="image_encoder")
    sampler.txt2img("a cat", image_prompt=picture, image_scale=0.6)
    handle.remove()             # restores the model bit for bit

The published adapters of SD1 need CLIP ViT-H/14, as a folder of transformers' or open_clip's. See
`ldm_core.control.ip_adapter` for what an adapter computes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldm_core.checkpoint.folder import ALONE, PREPROCESSOR, read_json
from ldm_core.checkpoint.key_map import expand, report, to_parameters
from ldm_core.checkpoint.reader import read
from ldm_core.checkpoint.values import all_finite
from ldm_core.clip import CLIP
from ldm_core.clip.image_encoder import CLIPImageEncoder
from ldm_core.clip.names import TRANSFORMERS_IMAGE
from ldm_core.clip.settings import image_encoder_in
from ldm_core.control.image_projection import IPAdapter, IPAdapterConfig
from ldm_core.control.ip_adapter import ImagePromptHandle, cross_attentions, find_unet
from ldm_core.control.ip_names import ip_adapter_config, ip_adapter_map
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.loading.families import unsupported_control
from ldm_core.model import LatentDiffusion
from ldm_core.nn.placement import blank, fill, parameter_names
from ldm_core.unet.network import UNet

Clip = str | os.PathLike[str] | nn.Module | None


def apply_ip_adapter(
    model: LatentDiffusion, path: str | os.PathLike[str], *, clip: Clip = None
) -> ImagePromptHandle:
    """Apply an IP-Adapter to a model, in place, and return a handle to it.

    path: a `.bin` or `.safetensors` file of a base, plus or full-face adapter.
    clip: the image encoder that it was made for: a `CLIPImageEncoder`, a `CLIP`, or the path of one. Without
        it the adapter takes embeddings only.
    Raises CheckpointError if a file cannot be read or does not fit the model, and ValueError for a model
    without a U-Net of this package. The model is then unchanged.
    """
    unet = find_unet(model)
    if unet is None:
        raise ValueError("an IP-Adapter needs a model with a U-Net of this package")
    weight = next(unet.parameters())
    network = read_ip_adapter(Path(path), unet)
    encoder = image_encoder_of(clip, weight)
    name, config = Path(path).name, network.config
    if encoder is not None:
        found = encoder.config.projection_dim if config.kind == "base" else encoder.config.width
        if found != config.embedding_dim:
            raise CheckpointError(
                f"{name} was made for image embeddings of {config.embedding_dim} numbers; this CLIP's "
                f"have {found}"
            )
    return ImagePromptHandle(name, network.to(weight.device, weight.dtype), unet, encoder)


def read_ip_adapter(path: Path, unet: UNet) -> IPAdapter:
    """The network in a file, in float32. Raises CheckpointError if it is none, or not for this U-Net."""
    checkpoint = read(path)
    refused = unsupported_control(checkpoint.tensors)
    if refused is not None:
        raise CheckpointError(f"{path.name} is {refused}")
    shapes = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    try:
        config = ip_adapter_config(shapes)
    except ConfigError as error:
        raise CheckpointError(f"{path.name} is {error}") from error
    except (KeyError, ValueError, IndexError) as error:
        keys = ", ".join(map(repr, list(shapes)[:3]))
        raise CheckpointError(f"{path.name} contains no IP-Adapter (keys such as {keys})") from error
    _require_fit(path.name, config, unet)
    network = blank(IPAdapter, config)
    key_map = ip_adapter_map(config)
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    parameters = to_parameters(key_map, checkpoint.tensors, wanted, source=path.name)
    problems = {
        "not used by the adapter": [key for key in shapes if key not in key_map],
        "with values that are not finite": [k for k in key_map if not all_finite(checkpoint.tensors[k])],
    }
    report(path.name, problems)
    fill(network, parameters, "cpu", torch.float32)
    return network


def _require_fit(name: str, config: IPAdapterConfig, unet: UNet) -> None:
    ours = tuple(layer.to_k.out_features for layer in cross_attentions(unet).values())
    for what, theirs, wanted in (
        ("context width", config.context_dim, unet.config.context_dim),
        ("number of attention layers", len(config.channels), len(ours)),
        ("attention layers' widths", config.channels, ours),
    ):
        if theirs != wanted:
            raise CheckpointError(
                f"{name} is for another model: its {what} is {theirs}, the model's {wanted}"
            )


def image_encoder_of(clip: Clip, weight: torch.Tensor) -> CLIPImageEncoder | None:
    """The image encoder of a CLIP, or of the file or folder of one; files on a weight's device, in its dtype.

    Raises CheckpointError for a path without an image encoder, and ValueError for other values.
    """
    if clip is None:
        return None
    if isinstance(clip, nn.Module):
        encoder = getattr(clip, "image_encoder", clip)
        if not isinstance(encoder, CLIPImageEncoder):
            raise ValueError(f"expected a CLIP or its image encoder, not {type(clip).__name__}")
        return encoder
    if not isinstance(clip, str | os.PathLike):
        raise ValueError(f"expected clip as a CLIP, its image encoder or a path, not {type(clip).__name__}")
    path = Path(clip)
    if not (path / ALONE).is_file() or "vision_config" in read_json(path / ALONE):
        return CLIP.load(path, device=weight.device, dtype=weight.dtype).image_encoder
    return _vision_model(path, weight)


def _vision_model(path: Path, weight: torch.Tensor) -> CLIPImageEncoder:
    """transformers' `CLIPVisionModelWithProjection`: an image encoder alone, as the authors publish it."""
    settings = read_json(path / ALONE)
    pixels: dict[str, Any] = read_json(path / PREPROCESSOR) if (path / PREPROCESSOR).is_file() else {}
    joint = settings.get("projection_dim", 512)
    config = image_encoder_in(settings, joint, pixels, ALONE)
    network = blank(CLIPImageEncoder, config)
    key_map = expand(TRANSFORMERS_IMAGE, parameter_names(CLIPImageEncoder, config))
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    parameters = to_parameters(key_map, read(path).tensors, wanted, source=path.name)
    fill(network, parameters, weight.device, weight.dtype)
    return network
