"""Small random controls, and their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm_core.checkpoint.key_map import KeyMap, to_file
from ldm_core.control.controlnet import ControlNet
from ldm_core.control.image_projection import IPAdapter, IPAdapterConfig
from ldm_core.control.ip_adapter import cross_attentions
from ldm_core.control.ip_names import ip_adapter_map
from ldm_core.model import LatentDiffusion


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hint(*shape: int, seed: int = 0) -> Tensor:
    """A picture in [0, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(network: Any, seed: int = 0) -> Any:
    """Random weights of which none is zero or one, so that no term can hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:  # the scales of norms are about 1
                parameter.copy_((parameter == 1).float() + 0.2 * noise)
            else:
                parameter.copy_(noise * 0.8 / max(parameter[0].numel(), 1) ** 0.5)
    return network.eval().requires_grad_(False)


def controlnet(model: LatentDiffusion, seed: int = 0) -> ControlNet:
    """A ControlNet that changes much."""
    return shaken(ControlNet.of(model.unet), seed)


def write_ip_adapter(model: LatentDiffusion, embedding_dim: int, path: Path) -> str:
    """The file of a base adapter that changes much; embedding_dim: of CLIP's projected vectors."""
    widths = tuple(layer.to_k.out_features for layer in cross_attentions(model.unet).values())
    context = model.config.unet.context_dim
    config = IPAdapterConfig("base", embedding_dim, context, channels=widths)
    save_file(tensors_of(shaken(IPAdapter(config)), ip_adapter_map(config)), path)
    return str(path)


def tensors_of(network: nn.Module, key_map: KeyMap, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a file with a network."""
    file = to_file(key_map, network.state_dict())
    return {prefix + name: value.contiguous() for name, value in file.items()}
