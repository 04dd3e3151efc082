"""Masks with which a restored face is pasted over a photo, and the filters that make them.

Masks are tensors (H, W) in [0, 1]: 1 is the face alone, 0 the photo alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.restoration.inputs import placement
from ldm_core.restoration.warping import Region, covered, warp

PARSED = 512  # pixels of a side of the pictures that ParseNet sees
# Halves of OpenCV's kernels for small sizes and no given sigma, in 256ths.
_SMALL_KERNELS = {
    1: (256.0,),
    3: (64.0, 128.0),
    5: (16.0, 64.0, 96.0),
    7: (8.0, 28.0, 56.0, 72.0),
    9: (4.0, 13.0, 30.0, 51.0, 60.0),
}
PARSED_BLUR = 101  # pixels of the Gaussian over a parsed mask, which is applied twice


@dataclass(frozen=True)
class ParsedMask:
    """How a mask is made of a parser's classes.

    classes: of ParseNet, which the mask contains. sigma: of the Gaussians. border: pixels at the square's
    border that are set to 0, before or after them.
    """

    classes: tuple[int, ...]
    sigma: float
    border: int
    before: bool


def square_mask(
    to_photo: Tensor, to_face: Tensor, side: int, photo: tuple[int, int], upscale: int
) -> tuple[Region, Tensor, Tensor]:
    """The region of the photo (H, W) that a face reaches, and in it the masks (solid, soft).

    to_photo, to_face: the affine maps (2, 3) between the aligned face, of `side` pixels, and the photo, which
        is enlarged by `upscale` already.
    solid: the square, without a rim in which pixels from outside the face have a part. soft: the square,
        smaller by a twentieth of its side, with an edge that is blurred over the same width.
    """
    # What the filters read beyond the face must lie in the region, unless it lies beyond the photo's border.
    reach = int(abs(float(torch.linalg.det(to_photo[:, :2]))) ** 0.5 * (side + 1)) // 20 + 2 * upscale + 2
    region = covered(to_photo, side, photo, reach)
    if region.is_empty():
        return region, torch.zeros(0, 0), torch.zeros(0, 0)
    solid = warp(torch.ones(side, side, 1), to_face, region)[..., 0]
    solid = erode(solid, 2 * upscale)
    edge = int(float(solid.sum(dtype=torch.float64)) ** 0.5) // 20
    soft = blur(erode(solid, 2 * edge), 2 * edge + 1, None)
    return region, solid, soft


@torch.inference_mode()
def parsed_mask(face: Tensor, parser: Any, made: ParsedMask) -> Tensor:
    """The mask (512, 512) of an aligned face (512, 512, 3), RGB in [0, 255], by a network.

    parser: a callable from (1, 3, 512, 512) in [-1, 1] to logits (1, 19, 512, 512) of ParseNet's classes, or
        to a tuple that begins with them.
    Raises ValueError for another result.
    """
    x = (face / 127.5 - 1).permute(2, 0, 1)[None].to(**placement(parser))
    out = parser(x)
    logits = out[0] if isinstance(out, tuple) else out
    if not isinstance(logits, Tensor) or logits.shape != (1, 19, PARSED, PARSED):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"expected logits of (1, 19, {PARSED}, {PARSED}) from the parser, got {found}")
    classes = logits[0].argmax(dim=0).cpu()
    mask = torch.isin(classes, torch.tensor(made.classes)).float()
    mask = _framed(mask, made.border) if made.before else mask
    for _ in range(2):
        mask = blur(mask, PARSED_BLUR, made.sigma)
    return mask if made.before else _framed(mask, made.border)


def _framed(mask: Tensor, border: int) -> Tensor:
    """The mask with zeros at its border."""
    inner = slice(border, -border)
    return F.pad(mask[inner, inner], (border,) * 4)


def erode(mask: Tensor, size: int) -> Tensor:
    """The minimum over a square of `size` pixels, or of 3 for a size of 0, as OpenCV's `erode` does it.

    An even square reaches one pixel farther to the left and top. What lies outside the mask does not count.
    """
    size = size or 3
    before, after = size // 2, (size - 1) // 2
    padded = F.pad(-mask[None, None], (before, after, before, after), value=-torch.inf)
    rows = F.max_pool2d(padded, (size, 1), stride=1)
    return -F.max_pool2d(rows, (1, size), stride=1)[0, 0]


def blur(mask: Tensor, size: int, sigma: float | None) -> Tensor:
    """A Gaussian over `size` pixels (odd); the mask is mirrored at its borders, without the edge.

    sigma: in pixels; None: the one that OpenCV chooses for this size.
    """
    half = size // 2
    kernel = _gaussian(size, sigma)
    for axis in (0, 1):
        mask = mask.index_select(axis, _mirrored(mask.shape[axis], half)).movedim(axis, -1)
        mask = F.conv1d(mask.reshape(-1, 1, mask.shape[-1]), kernel[None, None])[:, 0].movedim(-1, axis)
    return mask


def _gaussian(size: int, sigma: float | None) -> Tensor:
    if sigma is None and size in _SMALL_KERNELS:
        half = torch.tensor(_SMALL_KERNELS[size]) / 256
        return torch.cat([half, half.flip(0)[1:]])
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8 if sigma is None else sigma
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    return (kernel / kernel.sum()).float()


def _mirrored(length: int, reach: int) -> Tensor:
    """The indices -reach..length + reach - 1, mirrored into 0..length - 1 without repeating the ends."""
    period = max(2 * (length - 1), 1)
    index = torch.arange(-reach, length + reach) % period
    return torch.minimum(index, (period - index) % period)
