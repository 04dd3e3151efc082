"""Previews of latents without the decoder: a linear map from latent channels to RGB, fitted per model.

Latents keep the spatial layout of the image, and their channels encode mostly colour. A 3 x (C + 1) matrix,
fitted by least squares, therefore gives a preview at the latent's resolution at almost no cost.

`fit_preview` needs no data: it draws synthetic images, encodes and decodes them, and regresses the decoded
image, averaged over the area of each latent pixel, on the latent. CompVis has no counterpart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.images import tensor_to_pil
from ldm_core.model import LatentDiffusion
from ldm_core.noise import randn

if TYPE_CHECKING:
    from PIL.Image import Image

Upscale = Literal["nearest", "bicubic"]

LATENT_SIZE = 16  # height and width, in latent pixels, of the synthetic images
CHUNK = 8  # images per autoencoder batch
NOISE = 0.3  # largest standard deviation of the noise added to the latents, whose own is about 1


@dataclass(frozen=True, eq=False)
class LatentPreview:
    """rgb = weight @ latent + bias, for every latent pixel.

    weight: (3, C). bias: (3,). factor: the image's size divided by the latent's.
    """

    weight: Tensor
    bias: Tensor
    factor: int

    def __call__(self, latent: Tensor, *, upscale: Upscale | None = None) -> Tensor:
        """Scaled latents (B, C, h, w) to images (B, 3, h, w) in [0, 1], float32, on the latent's device.

        upscale: "nearest" or "bicubic" enlarges the images to the decoder's size, (B, 3, h * factor,
        w * factor). Raises ValueError for latents of another shape or another `upscale`.
        """
        channels = self.weight.shape[1]
        if latent.ndim != 4 or latent.shape[1] != channels:
            raise ValueError(f"expected latents of (B, {channels}, h, w), got {tuple(latent.shape)}")
        if upscale not in (None, "nearest", "bicubic"):
            raise ValueError(f"upscale must be None, 'nearest' or 'bicubic', not {upscale!r}")
        latent = latent.detach().float()
        rgb = F.conv2d(latent, self.weight.to(latent)[:, :, None, None], self.bias.to(latent))
        if upscale is not None:
            rgb = F.interpolate(rgb, scale_factor=self.factor, mode=upscale)
        return rgb.clamp(0, 1)

    def to_pil(self, latent: Tensor, *, upscale: Upscale | None = "nearest") -> list[Image]:
        """Scaled latents (B, C, h, w) to one PIL image each. upscale: as in `__call__`."""
        return tensor_to_pil(self(latent, upscale=upscale))


def fit_linear(latents: Tensor, images: Tensor) -> LatentPreview:
    """Fit a preview to latents and their images by least squares.

    latents: scaled, (B, C, h, w).
    images: the decoded images, (B, 3, h * factor, w * factor), 0 for black and 1 for white; values outside
        [0, 1] need not be clamped.
    Raises ValueError if the shapes do not match.
    """
    if latents.ndim != 4 or latents.numel() == 0:
        raise ValueError(f"expected latents of (B, C, h, w), got {tuple(latents.shape)}")
    b, c, h, w = latents.shape
    factor = images.shape[-1] // w
    if images.shape != (b, 3, h * factor, w * factor) or factor < 1:
        raise ValueError(
            f"expected images of (B, 3, h * f, w * f) for latents of {tuple(latents.shape)}, "
            f"got {tuple(images.shape)}"
        )
    targets = F.avg_pool2d(images.cpu().double(), factor)
    x = latents.cpu().double().movedim(1, -1).reshape(-1, c)  # (B, C, h, w) -> (B * h * w, C)
    y = targets.movedim(1, -1).reshape(-1, 3)
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    # PyTorch's default driver gives wrong solutions for linearly dependent channels (torch 2.13).
    solution = torch.linalg.lstsq(torch.cat([x, ones], dim=1), y, driver="gelsd").solution  # (C + 1, 3)
    return LatentPreview(weight=solution[:c].T.float(), bias=solution[c].float(), factor=factor)


@torch.no_grad()
def fit_preview(model: LatentDiffusion, seed: int = 0, *, pictures: int = 48) -> LatentPreview:
    """Fit a preview to a model without data, on synthetic images: colour fields and shapes, half each.

    A little noise is added to the latents, and the targets are the decoded noisy latents: a fit to clean
    latents is no better on finished images, and worse than plain grey in the first half of sampling.

    seed: of the synthetic images and the noise. pictures: how many images to draw.
    Raises ValueError if `pictures` < 1.
    """
    if pictures < 1:
        raise ValueError(f"pictures must be positive, not {pictures}")
    size = LATENT_SIZE * model.config.autoencoder.downsampling
    generator = torch.Generator().manual_seed(seed)
    drawings = draw_pictures(pictures, size, generator)
    clean = torch.cat([model.encode_image(chunk * 2 - 1) for chunk in drawings.split(CHUNK)])
    level = NOISE * torch.rand(pictures, 1, 1, 1, generator=generator)
    latents = clean + (level * randn(clean.shape, generator)).to(clean)
    decoded = torch.cat([model.decode_latent(chunk).float().cpu() for chunk in latents.split(CHUNK)])
    return fit_linear(latents, decoded / 2 + 0.5)


def draw_pictures(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Synthetic images (count, 3, size, size) in [0, 1]: colour fields and shapes alternate."""
    draw = (_colour_field, _shapes)
    return torch.stack([draw[i % 2](size, generator) for i in range(count)])


def _colour_field(size: int, generator: torch.Generator) -> Tensor:
    """A random image of 2 x 2 to 8 x 8 pixels, enlarged bicubically."""
    points = int(torch.randint(2, 9, (), generator=generator))
    colours = torch.rand(1, 3, points, points, generator=generator)
    return F.interpolate(colours, size=(size, size), mode="bicubic", align_corners=True)[0].clamp(0, 1)


def _shapes(size: int, generator: torch.Generator) -> Tensor:
    """Four overlapping discs and rectangles of plain colours on a plain background."""
    axis = torch.linspace(0, 1, size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    picture = torch.rand(3, 1, 1, generator=generator).expand(3, size, size)
    for _ in range(4):
        centre_x, centre_y, width, height, kind = torch.rand(5, generator=generator).tolist()
        u = (x - centre_x) / (0.05 + 0.35 * width)
        v = (y - centre_y) / (0.05 + 0.35 * height)
        inside = u**2 + v**2 < 1 if kind < 0.5 else torch.maximum(u.abs(), v.abs()) < 1
        picture = torch.where(inside, torch.rand(3, 1, 1, generator=generator), picture)
    return picture
