"""The preprocessing for CLIP's image encoder in CompVis's and Stability AI's repositories, not OpenAI's.

A picture is resized to the encoder's square without keeping its aspect (bicubic, with aligned corners), and
normalised. Models that are conditioned on image embeddings were trained with this. Counterparts:
`preprocess` of `FrozenClipImageEmbedder` and `FrozenOpenCLIPImageEmbedder` of `ldm.modules.encoders.modules`,
which call `kornia.geometry.resize`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.clip.config import ImageEncoderConfig
from ldm_core.images import ImageInput, image_to_tensor

LEAST_SIGMA = 0.001  # of the blur, in pixels: no blur


def preprocess_stretched(images: ImageInput, config: ImageEncoderConfig, *, antialias: bool) -> Tensor:
    """Convert images of any sizes to normalised pixels (B, 3, S, S), float32 on the CPU; S is the image_size.

    images: PIL images, tensors (3, H, W) or (B, 3, H, W) in [0, 1], or a list of them.
    antialias: blur pictures larger than S first. Stability AI's unCLIP does, retrieval-augmented diffusion
        does not.
    Raises ValueError for other inputs.
    """
    if isinstance(images, Sequence) and not isinstance(images, str | bytes) and len(images) > 0:
        return torch.cat([preprocess_stretched(one, config, antialias=antialias) for one in images])
    x = image_to_tensor(images)
    size = config.image_size
    if x.numel() == 0:
        raise ValueError(f"expected an image with pixels, got {tuple(x.shape)}")
    if antialias:
        x = _blur(_blur(x, size).mT, size).mT
    x = F.interpolate(x, (size, size), mode="bicubic", align_corners=True)
    mean, std = (x.new_tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (x - mean) / std


def _blur(x: Tensor, size: int) -> Tensor:
    """Blur the columns (B, C, H, W) along H by a Gaussian that suits a resize of H to `size`."""
    sigma = max((x.shape[2] / size - 1) / 2, LEAST_SIGMA)
    if sigma == LEAST_SIGMA:
        return x
    width = int(max(4 * sigma, 3)) // 2 * 2 + 1  # odd
    offsets = torch.arange(width, dtype=torch.float64) - width // 2
    kernel = (-(offsets**2) / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).to(x)[None, None, :, None]  # (1, 1, width, 1)
    rows = F.pad(x, (0, 0, width // 2, width // 2), mode="reflect").flatten(0, 1)[:, None]  # (B C, 1, H+, W)
    return F.conv2d(rows, kernel).view(x.shape)
