"""Hints from pictures, as the published ControlNets and T2I-Adapters were trained with.

Edges and masked pictures need no network. For depth, poses and the like, pass any function's result as a
`Control`'s hint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ldm_core.images import ImageInput, image_to_tensor, mask_to_tensor


def canny(image: ImageInput, low: int = 100, high: int = 200, *, channels: int = 3) -> Tensor:
    """White edges on black, (B, channels, H, W) of 0 and 1, by OpenCV: `pip install ldm_core[control]`.

    image: a PIL image or a tensor (B, 3, H, W) in [0, 1]. low, high: the thresholds of the gradient of
    colours in 0..255; the ControlNet author's script uses 100 and 200. channels: 3 for a ControlNet, 1 for a
    T2I-Adapter. Raises ValueError for thresholds that are not increasing within 0..255.
    """
    if not 0 <= low <= high <= 255:
        raise ValueError(f"expected thresholds 0 <= low <= high <= 255, got {low!r:.20} and {high!r:.20}")
    cv2 = _opencv()
    pictures = image_to_tensor(image).mul(255).round().byte().permute(0, 2, 3, 1)  # (B, H, W, 3)
    edges = [torch.from_numpy(cv2.Canny(one.contiguous().numpy(), low, high)) for one in pictures]
    return torch.stack(edges).gt(0).float()[:, None].repeat(1, channels, 1, 1)


def masked(image: ImageInput, mask: ImageInput) -> Tensor:
    """The hint of an inpainting ControlNet: the picture (B, 3, H, W) with -1 where the mask is white.

    Raises ValueError for a mask of another size.
    """
    pixels, hidden = image_to_tensor(image), mask_to_tensor(mask)
    if pixels.shape[2:] != hidden.shape[2:]:
        sizes = [f"{x.shape[3]}×{x.shape[2]}" for x in (hidden, pixels)]
        raise ValueError(f"expected a mask of the picture's size, {sizes[1]} pixels, got {sizes[0]}")
    return torch.where(hidden > 0.5, torch.full_like(pixels, -1), pixels)


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise ImportError("canny needs OpenCV: pip install opencv-python-headless") from error
    return cv2
