"""Seeing a latent without the decoder: a linear map from latent channels to colours, fitted per model.

An autoencoder of the KL kind keeps the layout of a picture, and much of what its channels hold is colour.
One matrix of 3 x (C + 1) numbers, found by least squares, therefore shows every step of a sampling at
almost no cost, at the latent's resolution.

`fit_preview` needs no data: it draws pictures, sends them through the autoencoder, and regresses the
decoded picture, averaged over the area of each latent pixel, on the latent. CompVis has no counterpart.
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

LATENT_SIZE = 16  # latent pixels along an edge of the pictures that are drawn for the fit
CHUNK = 8  # pictures at a time through the autoencoder
NOISE = 0.3  # the largest standard deviation of what is added to the latents, which have about 1


@dataclass(frozen=True, eq=False)
class LatentPreview:
    """rgb = weight @ latent + bias, for every latent pixel.

    weight: (3, C). bias: (3,). factor: pixels along an edge of a latent pixel.
    """

    weight: Tensor
    bias: Tensor
    factor: int

    def __call__(self, latent: Tensor, *, upscale: Upscale | None = None) -> Tensor:
        """Scaled latents (B, C, h, w) to pictures in [0, 1]: (B, 3, h, w), float32, on the latent's device.

        upscale: "nearest" or "bicubic" enlarges them to the size that the decoder would give,
        (B, 3, h * factor, w * factor). Raises ValueError for latents of another shape.
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
        """Scaled latents (B, C, h, w) to one PIL image each; arguments as of a call."""
        return tensor_to_pil(self(latent, upscale=upscale))


def fit_linear(latents: Tensor, images: Tensor) -> LatentPreview:
    """The least-squares preview of pictures that are known.

    latents: scaled, (B, C, h, w). images: what they decode to, (B, 3, h * factor, w * factor), where
        0 is black and 1 white; values beyond, as decoders give them, need not be cut off.
    Raises ValueError if the sizes do not belong together.
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
    # gelsd, as PyTorch's default driver is wrong where channels depend on one another (seen in torch 2.13)
    solution = torch.linalg.lstsq(torch.cat([x, ones], dim=1), y, driver="gelsd").solution  # (C + 1, 3)
    return LatentPreview(weight=solution[:c].T.float(), bias=solution[c].float(), factor=factor)


@torch.no_grad()
def fit_preview(model: LatentDiffusion, seed: int = 0, *, pictures: int = 48) -> LatentPreview:
    """Fit a preview to any model, with no data: half colour fields, half shapes on plain backgrounds.

    The latents are made a little noisy, as those of a sampling are: a fit to clean ones shows finished
    pictures no better, and the first half of the way worse than plain grey would. The target is what the
    decoder makes of such a latent. The same seed gives the same preview.
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
    """Synthetic pictures (count, 3, size, size) in [0, 1], smooth and hard-edged ones by turns."""
    draw = (_colour_field, _shapes)
    return torch.stack([draw[i % 2](size, generator) for i in range(count)])


def _colour_field(size: int, generator: torch.Generator) -> Tensor:
    """Random colours at the corners of 2 x 2 to 8 x 8 points, and smooth transitions between them."""
    points = int(torch.randint(2, 9, (), generator=generator))
    colours = torch.rand(1, 3, points, points, generator=generator)
    return F.interpolate(colours, size=(size, size), mode="bicubic", align_corners=True)[0].clamp(0, 1)


def _shapes(size: int, generator: torch.Generator) -> Tensor:
    """Four discs and rectangles of plain colours, one over another, on a plain background."""
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
