"""The preprocessing for CLIP's image encoder, as in `_transform` of OpenAI's `clip/clip.py`.

The shorter side is scaled to the encoder's size (bicubic, antialiased), the centre square is cropped, and the
mean and standard deviation of the training set normalise each channel. PIL scales a PIL image in 8 bits,
which equals OpenAI's result. A tensor is scaled in floating point, differentiably and on its device; its
values differ by a few 8-bit levels (`tests/clip/test_preprocessing.py` has the bounds).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.clip.config import ImageEncoderConfig
from ldm_core.images import ImageInput, image_to_tensor, to_rgb

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST = 64  # maximum ratio of sides; scaling up a very narrow picture would need too much memory


Crop = Literal["openai", "transformers"]


def preprocess(images: ImageInput, config: ImageEncoderConfig, *, crop: Crop = "openai") -> Tensor:
    """Convert one or several images of any sizes to normalised pixels (B, 3, S, S); S is the image_size.

    images: a PIL image of any mode (rotated upright, with transparency composited on white); a floating-point
    tensor (3, H, W) or (B, 3, H, W) in [0, 1]; or a list of these. The result for PIL images is float32 on
    the CPU; for a tensor, it has the tensor's dtype and device.
    crop: the offset of the centre crop is rounded to even in OpenAI's code and down in transformers', which
    differs by a pixel for some sizes. Adapters that were trained with transformers need the latter.

    Raises ValueError for other inputs.
    """
    if crop not in get_args(Crop):
        raise ValueError(f"crop must be one of {', '.join(get_args(Crop))}, not {crop!r}")
    if isinstance(images, Sequence) and not isinstance(images, str | bytes):
        if not images:
            raise ValueError("expected at least one image, got an empty list")
        return torch.cat([preprocess(image, config, crop=crop) for image in images])
    size = config.image_size
    if isinstance(images, Tensor):
        square = _square_of_tensor(images, size, crop)
    else:
        square = image_to_tensor(_square_of_pil(images, size, crop))
    mean, std = (square.new_tensor(values)[:, None, None] for values in (config.mean, config.std))
    return (square - mean) / std


def scaled_size(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) with the shorter side `size`. The longer side is rounded down, as in torchvision."""
    short, long = min(height, width), max(height, width)
    if short < 1 or long > LONGEST * short:
        raise ValueError(
            f"expected an image whose longer side is at most {LONGEST} times the shorter, got "
            f"{height} x {width} (H x W)"
        )
    scaled = int(size * long / short)
    return (size, scaled) if height <= width else (scaled, size)


def _first(length: int, size: int, crop: Crop) -> int:
    """The offset of the centre crop."""
    return round((length - size) / 2) if crop == "openai" else (length - size) // 2


def _square_of_pil(image: Any, size: int, crop: Crop) -> Image:
    from PIL import Image as PIL

    if not isinstance(image, PIL.Image):
        raise ValueError(f"expected the image as a PIL image or a tensor, not {type(image).__name__}")
    rgb = to_rgb(image)
    height, width = scaled_size(rgb.height, rgb.width, size)
    top, left = _first(height, size, crop), _first(width, size, crop)
    scaled = rgb.resize((width, height), PIL.Resampling.BICUBIC)
    return scaled.crop((left, top, left + size, top + size))


def _square_of_tensor(image: Tensor, size: int, crop: Crop) -> Tensor:
    batch = image if image.ndim == 4 else image[None]
    if batch.ndim != 4 or batch.shape[1] != 3 or not batch.is_floating_point() or len(batch) == 0:
        raise ValueError(
            "expected an image as a floating-point tensor (B, 3, H, W) or (3, H, W), got "
            f"{tuple(image.shape)} of {image.dtype}"
        )
    height, width = scaled_size(batch.shape[2], batch.shape[3], size)
    low, high = batch.detach().aminmax()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"expected image values in [0, 1], got {float(low):.3g} to {float(high):.3g}")
    scaled = batch
    if batch.shape[2:] != (height, width):
        scaled = F.interpolate(batch, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
    top, left = _first(height, size, crop), _first(width, size, crop)
    return scaled[:, :, top : top + size, left : left + size]
