"""A photo as an array of levels, of which a part is read or written at a time, and back to a picture.

A photo keeps its mode: colour or grey, 8 or 16 bits (grey alone, as Pillow has no other), and transparency;
and its colour profile, resolution and EXIF data, whose orientation is applied. The exceptions are the modes
that image files rarely have: palettes, CMYK and others become RGB, and floating-point numbers become 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm_core.images import MAX_PIXELS, image_to_tensor, to_rgb, upright
from ldm_core.restoration.picture_array import PictureArray
from ldm_core.restoration.warping import Filter, Pixels, resized_bands

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS = 256  # of a photo to read at a time
ORIENTATION = 0x0112  # the EXIF tag
KEPT_INFO = ("icc_profile", "dpi", "exif")
GREY = (0.2989, 0.5870, 0.1140)  # of red, green and blue
GREY_VARIANCE = 10.0  # of the differences between channels, in squared levels of 255


@dataclass(frozen=True)
class Photo:
    """pixels  (H, W, C): RGB or grey, then alpha if there is one; uint8, int32 for 16 bits, or float32 in
            [0, 1]; an array of a PIL image, or a tensor
    top     the level of white: 255, 65535 or 1
    source  what the photo was made from: a PIL image, or a tensor
    shared  whether `pixels` are those of the source, which must not change
    """

    pixels: PictureArray | Tensor
    top: int
    source: Any
    shared: bool

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def colours(self) -> int:
        """Channels without alpha: 3 for RGB, 1 for grey."""
        return 3 if self.pixels.shape[2] > 2 else 1

    def in_rgb(self) -> Pixels:
        """The photo as an array (H, W, 3) without alpha, in its own levels. It shares the photo's memory."""
        return _RGB(self)

    def levels(self) -> Pixels:
        """The same in 8 bits."""
        return _Levels(self)

    def rgb(self) -> Image:
        """The photo in RGB, upright, for a detector that takes a PIL image."""
        from PIL import Image as PIL

        if isinstance(self.source, Tensor):
            return PIL.fromarray(self.levels()[:].numpy())
        return to_rgb(self.source)

    def is_grey(self) -> bool:
        """Whether it has no colours but those that compression or a scanner adds to a grey photo."""
        return self.colours == 1 or self._colour() <= GREY_VARIANCE

    def _colour(self) -> float:
        """The mean of the variances of R - G, G - B and B - R, in squared levels of 255."""
        total = torch.zeros(2, 3, dtype=torch.float64)
        for rows in _bands(self.size[0]):
            levels = self.pixels[rows][..., :3].float() * (255 / self.top)
            differences = (levels - levels.roll(-1, dims=2)).flatten(0, 1).double()
            total += torch.stack([differences.sum(dim=0), (differences**2).sum(dim=0)])
        mean, square = total / (self.size[0] * self.size[1])
        return float((square - mean**2).mean())

    def coloured(self) -> Photo:
        """A grey photo as RGB, with 8 bits."""
        assert isinstance(self.pixels, PictureArray)  # tensors have three channels
        mode = "RGBA" if self.pixels.shape[2] == 2 else "RGB"
        image = self.pixels.image
        if self.top != 255:
            new = PictureArray.blank(self.size, "L")
            for rows in _bands(self.size[0]):
                new[rows] = self.levels()[rows][..., :1]
            image = new.image
        return replace(self, pixels=PictureArray(image.convert(mode)), top=255, shared=False)

    def editable(self) -> Photo:
        """The photo with pixels that can be changed: a copy of them if they are the source's."""
        return replace(self, pixels=self.pixels.clone(), shared=False) if self.shared else self

    def resized(self, size: tuple[int, int], method: Filter) -> Photo:
        """The photo at the size (h, w), with pixels that can be changed."""
        if size == self.size:
            return self.editable()
        new = self.blank(size)
        finish = partial(_rounded, top=self.top, dtype=new.dtype)
        for rows, band in resized_bands(self.pixels, size, method):
            new[rows] = finish(band)
        return replace(self, pixels=new, shared=False)

    def blank(self, size: tuple[int, int]) -> PictureArray | Tensor:
        """Black pixels of the same kind."""
        if isinstance(self.pixels, PictureArray):
            return PictureArray.blank(size, self.pixels.image.mode)
        return torch.zeros(*size, self.pixels.shape[2])

    def picture(self) -> Any:
        """A picture of the same kind as the source: a PIL image, or a tensor of the same number of axes."""
        if isinstance(self.source, Tensor):
            assert isinstance(self.pixels, Tensor)
            tensor = self.pixels.permute(2, 0, 1).contiguous().to(self.source.device, self.source.dtype)
            return tensor if self.source.ndim == 3 else tensor[None]
        assert isinstance(self.pixels, PictureArray)
        image, info = self.pixels.image, _upright(self.source)[0].info
        image.info = {name: info[name] for name in KEPT_INFO if name in info}
        return image


@dataclass(frozen=True)
class _RGB:
    """Any photo as an array (H, W, 3)."""

    photo: Photo

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.photo.size, 3)

    @property
    def dtype(self) -> torch.dtype:
        return self.photo.pixels.dtype

    def __len__(self) -> int:
        return self.photo.size[0]

    def __getitem__(self, where: Any) -> Tensor:
        return self.photo.pixels[where][..., : self.photo.colours].expand(-1, -1, 3)


class _Levels(_RGB):
    """Any photo as an array (H, W, 3) of 8-bit levels."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    def __getitem__(self, where: Any) -> Tensor:
        pixels, top = super().__getitem__(where), self.photo.top
        return pixels if top == 255 else (pixels * (255 / top)).round().to(torch.uint8)


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
        return Photo(pictures[0].permute(1, 2, 0), 1, photo, shared=True)
    if not 0 < photo.width * photo.height <= MAX_PIXELS:
        raise ValueError(
            f"expected a photo of 1 to {MAX_PIXELS:,} pixels, got {photo.width:,} x {photo.height:,}"
        )
    image, turned = _upright(photo)
    kept = _in_a_kept_mode(image)
    array = PictureArray(kept)
    return Photo(array, array.top, photo, shared=kept is image and not turned)


def _in_a_kept_mode(image: Image) -> Image:
    """The picture itself, or converted to I;16, LA, RGBA, L or RGB."""
    import numpy as np
    from PIL import Image as PIL

    transparent = "transparency" in image.info
    if image.mode == "I;16":
        return image
    if image.mode.startswith("I"):
        return PIL.fromarray(np.asarray(image).astype(np.int32).clip(0, 65535).astype(np.uint16))
    if image.mode in ("LA", "La") and not transparent:
        mode = "LA"
    elif image.mode in ("PA", "RGBA", "RGBa") or transparent:
        mode = "RGBA"
    else:
        mode = "L" if image.mode in ("1", "L") else "RGB"
    if image.mode == mode and not transparent:
        return image
    return to_rgb(image) if image.mode == "F" else image.convert(mode)


def _upright(image: Image) -> tuple[Image, bool]:
    """The picture rotated by its EXIF data, which is a copy; the picture itself where there is none to do."""
    try:
        turned = image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF data, for which Pillow raises many errors
        turned = False
    if turned:
        return upright(image), True
    try:
        image.load()
    except Exception:
        upright(image)  # raises ValueError, with the reason
    return image, False


def _bands(height: int) -> Iterator[slice]:
    for top in range(0, height, ROWS):
        yield slice(top, min(top + ROWS, height))


def _rounded(band: Tensor, top: int, dtype: torch.dtype) -> Tensor:
    return (band if dtype == torch.float32 else (band + 0.5).floor()).clamp(0, top).to(dtype)
