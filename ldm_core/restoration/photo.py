"""A photo as one array of levels, and back to a picture of the photo's own kind.

A photo keeps its mode: colour or grey, 8 or 16 bits (grey alone, as Pillow has no other), and transparency;
and its colour profile, resolution and EXIF data, whose orientation is applied. The exceptions are the modes
that image files rarely have: palettes, CMYK and others become RGB, and floating-point numbers become 8 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm_core.images import MAX_PIXELS, image_to_tensor, to_rgb, upright
from ldm_core.restoration.warping import Filter, resize

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS = 256  # of a picture to convert at a time
ORIENTATION = 0x0112  # the EXIF tag
KEPT_INFO = ("icc_profile", "dpi", "exif")
GREY = (0.2989, 0.5870, 0.1140)  # of red, green and blue
GREY_VARIANCE = 10.0  # of the differences between channels, in squared levels of 255


@dataclass(frozen=True)
class Photo:
    """pixels  (H, W, 3) RGB or (H, W, 1) grey: uint8, int32 for 16 bits, or float32 in [0, 1]
    top     the level of white: 255, 65535 or 1
    alpha   (H, W, 1), uint8, or None
    source  what the photo was made from: a PIL image, or a tensor
    """

    pixels: Tensor
    top: int
    alpha: Tensor | None
    source: Any

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def levels(self) -> Tensor:
        """All pixels as 8-bit RGB: (H, W, 3), uint8. For 8 bits, this is no copy."""
        pixels = self.pixels if self.top == 255 else _in_8_bits(self.pixels, self.top)
        return pixels.expand(-1, -1, 3)

    def rgb(self) -> Image:
        """The photo in RGB, upright, for a detector that takes a PIL image."""
        from PIL import Image as PIL

        if isinstance(self.source, Tensor):
            return PIL.fromarray(self.levels().numpy())
        return to_rgb(self.source)

    def is_grey(self) -> bool:
        """Whether it has no colours but those that compression or a scanner adds to a grey photo."""
        return self.pixels.shape[2] == 1 or _colour(self.pixels, self.top) <= GREY_VARIANCE

    def coloured(self) -> Photo:
        """The same with three channels."""
        return replace(self, pixels=self.pixels.expand(-1, -1, 3).contiguous())

    def resized(self, size: tuple[int, int], method: Filter) -> Photo:
        """The photo at the size (h, w)."""
        if size == self.size:
            return self

        def finish(top: int, dtype: torch.dtype) -> Any:
            def rounded(band: Tensor) -> Tensor:
                return (band if dtype == torch.float32 else (band + 0.5).floor()).clamp(0, top).to(dtype)

            return rounded

        return replace(
            self,
            pixels=resize(self.pixels, size, method, finish(self.top, self.pixels.dtype)),
            alpha=None if self.alpha is None else resize(self.alpha, size, method, finish(255, torch.uint8)),
        )

    def picture(self) -> Any:
        """A picture of the same kind as the source: a PIL image, or a tensor of the same number of axes."""
        if isinstance(self.source, Tensor):
            tensor = self.pixels.permute(2, 0, 1).contiguous().to(self.source.device, self.source.dtype)
            return tensor if self.source.ndim == 3 else tensor[None]
        return _to_pil(self)


def open_photo(photo: Any) -> Photo:
    """A PIL image of any mode, or a tensor (3, H, W) or (1, 3, H, W) in [0, 1].

    Raises ValueError for anything else, for more than MAX_PIXELS pixels, and for a picture that cannot be
    decoded.
    """
    from PIL import Image as PIL

    if not isinstance(photo, PIL.Image):
        if not isinstance(photo, Tensor):
            raise ValueError(f"expected the photo as a PIL image or a tensor, not {type(photo).__name__}")
        pictures = image_to_tensor(photo)
        if len(pictures) != 1 or 0 in pictures.shape:
            raise ValueError(f"expected one photo (3, H, W), got {tuple(photo.shape)}")
        return Photo(pictures[0].permute(1, 2, 0).clone(), 1, None, photo)
    if not 0 < photo.width * photo.height <= MAX_PIXELS:
        raise ValueError(
            f"expected a photo of 1 to {MAX_PIXELS:,} pixels, got {photo.width:,} x {photo.height:,}"
        )
    image = _upright(photo)
    if image.mode.startswith("I"):
        return Photo(_pixels(image, None).int().clamp(0, 65535), 65535, None, photo)
    if image.mode in ("LA", "La") and "transparency" not in image.info:
        both = _pixels(image, "LA")
        return Photo(both[..., :1].contiguous(), 255, both[..., 1:].contiguous(), photo)
    if image.mode in ("PA", "RGBA", "RGBa") or "transparency" in image.info:
        both = _pixels(image, "RGBA")
        return Photo(both[..., :3].contiguous(), 255, both[..., 3:].contiguous(), photo)
    if image.mode in ("1", "L"):
        return Photo(_pixels(image, "L"), 255, None, photo)
    return Photo(_pixels(to_rgb(image) if image.mode == "F" else image, "RGB"), 255, None, photo)


def _upright(image: Image) -> Image:
    """The picture rotated by its EXIF data, which is a copy; the picture itself where there is none to do."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF data, for which Pillow raises many errors
        turned = False
    if turned:
        return upright(image)
    try:
        image.load()
    except Exception:
        upright(image)  # raises ValueError, with the reason
    return image


def _pixels(image: Image, mode: str | None) -> Tensor:
    """(H, W, C) of a picture converted to a mode, band by band: Pillow's conversions copy all they get."""
    import numpy as np

    whole: Tensor | None = None
    for top in range(0, image.height, ROWS):
        band = image.crop((0, top, image.width, min(top + ROWS, image.height)))
        if "transparency" in image.info:
            band.info["transparency"] = image.info["transparency"]
        values = np.asarray(band if mode is None or band.mode == mode else band.convert(mode))
        tensor = torch.from_numpy(values.astype(np.int32 if mode is None else np.uint8))
        if whole is None:
            whole = tensor.new_empty(image.height, *tensor.shape[1:])
        whole[top : top + len(tensor)] = tensor
    assert whole is not None  # since pictures have rows
    return whole if whole.ndim == 3 else whole[..., None]


def _in_8_bits(pixels: Tensor, top: int) -> Tensor:
    return (pixels * (255 / top)).round().to(torch.uint8)


def _colour(pixels: Tensor, top: int) -> float:
    """The mean of the variances of R - G, G - B and B - R, in squared levels of 255."""
    total = torch.zeros(2, 3, dtype=torch.float64)
    for band in pixels.split(ROWS):
        levels = band.float() * (255 / top)
        differences = (levels - levels.roll(-1, dims=2)).flatten(0, 1).double()
        total += torch.stack([differences.sum(dim=0), (differences**2).sum(dim=0)])
    mean, square = total / (pixels.shape[0] * pixels.shape[1])
    return float((square - mean**2).mean())


def _to_pil(photo: Photo) -> Image:
    import numpy as np
    from PIL import Image as PIL

    values = photo.pixels.numpy()
    grey = photo.pixels.shape[2] == 1
    if photo.top == 65535 and grey:
        image = PIL.fromarray(values[..., 0].astype(np.uint16))
    else:
        values = values if photo.top == 255 else _in_8_bits(photo.pixels, photo.top).numpy()
        image = PIL.fromarray(values[..., 0] if grey else values)
    if photo.alpha is not None:
        image.putalpha(PIL.fromarray(photo.alpha[..., 0].numpy()))
    info = _upright(photo.source).info
    image.info.update({name: info[name] for name in KEPT_INFO if name in info})
    return image
