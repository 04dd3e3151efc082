"""Small networks for faces with random weights, and the tensors of their files."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.checkpoint.key_map import to_file
from ldm_core.loading.parts import part_of
from ldm_core.restoration import (
    CodeFormerConfig,
    FaceAutoencoderConfig,
    GFPGANConfig,
    GPENConfig,
    ParseNetConfig,
    RetinaFaceConfig,
)

AUTOENCODER = FaceAutoencoderConfig(ch=32, ch_mult=(1, 2, 1), num_res_blocks=2, code_dim=8, codes=12)
CODEFORMER = CodeFormerConfig(
    ch=32,
    ch_mult=(1, 2, 1),
    num_res_blocks=2,
    code_dim=8,
    codes=12,
    size=16,
    width=16,
    layers=2,
    fuse=(8, 16),
)
GFPGAN = GFPGANConfig(widths=(8, 8, 6, 4), style_dim=8, mlp_layers=2)
SMALL = {
    "codeformer": CODEFORMER,
    "face_autoencoder": AUTOENCODER,
    "gfpgan clean": GFPGAN,
    "gfpgan original": GFPGANConfig((8, 8, 6, 4), 8, 2, "original"),
    "gfpgan bilinear": GFPGANConfig((8, 8, 6, 4), 8, 2, "bilinear"),
    "gpen": GPENConfig((6, 6, 4), 8, 2),
    "parsenet": ParseNetConfig((4, 6, 8), 2, 5),
    "resnet": RetinaFaceConfig("resnet50", 4, 68),
    "mobilenet": RetinaFaceConfig("mobilenet", 4, 8),
}


def random_network(config: Any, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Every tensor is random: weights that keep variances, and norms, biases and statistics near 1 or 0."""
    generator = torch.Generator().manual_seed(0)
    network = part_of(config).network(config).eval().requires_grad_(False).double()
    stored_with_unit_variance = getattr(config, "scaled", isinstance(config, GPENConfig))
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        if name.endswith(("kernel", "running_var")):
            value.copy_(value * (1 + 0.2 * noise.tanh()))
        elif value.ndim > 1 and "position" not in name:
            fan_in = math.prod(value.shape[-3:] if value.ndim > 3 else value.shape[1:])
            value.copy_(noise if stored_with_unit_variance else noise / math.sqrt(fan_in))
        elif name.endswith("modulation.bias") or (name.endswith("weight") and "norm" in name):
            value.copy_(1 + 0.3 * noise)
        else:
            value.copy_(0.3 * noise)
    return network.to(dtype)


def file_tensors(network: Any) -> dict[str, Tensor]:
    """The tensors of the network's file, by the file's names."""
    part = part_of(network.config)
    layout = part.layout(part.written(network.config))
    return to_file(layout.key_map(network.config), network.state_dict())


def picture(size: int, batch: int = 2, dtype: torch.dtype = torch.float64, seed: int = 1) -> Tensor:
    """Random pictures (batch, 3, size, size) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, size, size, generator=generator, dtype=torch.float64).to(dtype) * 2 - 1
