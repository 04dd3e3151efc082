"""Resampling of pictures: along affine maps, and to other sizes.

Pictures here are tensors (H, W, C) of levels; the results are float32. Pixel (x, y) is the sample at (x, y),
as in OpenCV, whose `warpAffine` and `resize` compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

BAND = 2**18  # pixels to compute at a time, which bounds the memory of their coordinates

# The fixed point of OpenCV's `resize` for 8 bits: of weights, and where it cuts bilinear sums, in levels.
WEIGHT_STEP, WIDE_STEP, PART_STEP = 2.0**-11, 2.0**-7, 2.0**-2

Filter = Literal["bilinear", "lanczos"]


class Pixels(Protocol):
    """A tensor (H, W, C), or an array that gives such tensors for slices of rows and columns."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __len__(self) -> int: ...

    def __getitem__(self, where: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class Region:
    """A rectangle of pixels: rows top..bottom - 1, columns left..right - 1."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def is_empty(self) -> bool:
        return self.bottom <= self.top or self.right <= self.left

    def bands(self) -> Iterator[Region]:
        """The rectangle in parts of whole rows, of about BAND pixels each."""
        rows = max(1, BAND // max(self.size[1], 1))
        for top in range(self.top, self.bottom, rows):
            yield Region(top, self.left, min(top + rows, self.bottom), self.right)


def covered(to_photo: Tensor, side: int, photo: tuple[int, int], margin: int) -> Region:
    """The part of a photo (H, W) that a square picture reaches, with a margin.

    to_photo: the affine map (2, 3) from the square, of `side` pixels, to the photo.
    """
    corners = torch.tensor([(x, y, 1.0) for x in (-1, side) for y in (-1, side)], dtype=torch.float64)
    x, y = (corners @ to_photo.T).T
    height, width = photo
    return Region(
        max(floor(float(y.min())) - margin, 0),
        max(floor(float(x.min())) - margin, 0),
        min(ceil(float(y.max())) + margin + 1, height),
        min(ceil(float(x.max())) + margin + 1, width),
    )


def warp(picture: Pixels, to_picture: Tensor, region: Region, border: Tensor | float = 0.0) -> Tensor:
    """The pixels of a region of the target, interpolated bilinearly from a picture (H, W, C): (h, w, C).

    to_picture: the affine map (2, 3) from the target to the picture. Places are rounded to float32, where
        OpenCV 5 rounds them; otherwise levels near one half would become another whole number than there.
    border: the level of all that lies outside the picture, or one for each channel.
    """
    outside = torch.as_tensor(border, dtype=torch.float32)
    columns = torch.arange(region.left, region.right, dtype=torch.float64)
    bands = []
    for band in region.bands():
        y = torch.arange(band.top, band.bottom, dtype=torch.float32)[:, None]
        source_x, source_y = (
            (m[0].double() * columns + (m[1] * y + m[2]).double()).float() for m in to_picture.float()
        )
        bands.append(_sample(picture, source_x, source_y, outside))
    return torch.cat(bands) if bands else torch.zeros(*region.size, picture.shape[2])


def _sample(picture: Pixels, x: Tensor, y: Tensor, outside: Tensor) -> Tensor:
    """Bilinear interpolation at the places (x, y), both (h, w): (h, w, C)."""
    height, width = picture.shape[:2]
    left, top = x.floor(), y.floor()
    across, down = (x - left)[..., None], (y - top)[..., None]
    rows, columns = _reached(top, height), _reached(left, width)
    seen = picture[rows, columns]

    def at(row: Tensor, column: Tensor) -> Tensor:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        row, column = row.clamp(0, height - 1) - rows.start, column.clamp(0, width - 1) - columns.start
        return torch.where(inside[..., None], seen[row.long(), column.long()].float(), outside)

    def between(row: Tensor) -> Tensor:
        first = at(row, left)
        return first + across * (at(row, left + 1) - first)

    upper = between(top)
    return upper + down * (between(top + 1) - upper)


def _reached(first: Tensor, length: int) -> slice:
    """The indices of 0..length - 1 from the least of `first` to one more than the greatest."""
    low, high = (int(one.clamp(0, length - 1)) for one in (first.amin(), first.amax() + 1))
    return slice(low, high + 1)


def resized_bands(picture: Pixels, size: tuple[int, int], method: Filter) -> Iterator[tuple[slice, Tensor]]:
    """A picture (H, W, C) at another size (h, w), in bands: their rows, and the bands (rows, w, C).

    The pixels at the border are repeated beyond it. Pictures of type uint8 are computed in fixed point, as in
    OpenCV, whose results would otherwise differ by one level in each tenth pixel.

    method: "bilinear", or "lanczos", the windowed sinc over 8 samples. Neither averages areas: they are meant
        for enlarging.
    """
    fixed = picture.dtype == torch.uint8
    (rows, row_weights), (columns, column_weights) = (
        _taps(old, new, method, fixed) for old, new in zip(picture.shape, size)
    )
    truncated = fixed and method == "bilinear"
    step = max(1, BAND // max(size[1], picture.shape[1]))
    for start in range(0, size[0], step):
        band = slice(start, min(start + step, size[0]))
        first = int(rows[:, band].min())
        source = picture[first : int(rows[:, band].max()) + 1].to(row_weights.dtype)
        wide = torch.zeros(len(source), size[1], source.shape[2], dtype=source.dtype)
        for i, w in zip(columns, column_weights):
            wide += source[:, i] * w[:, None]
        wide = _cut(wide, WIDE_STEP) if truncated else wide
        total = torch.zeros(())
        for i, w in zip(rows[:, band] - first, row_weights[:, band]):
            part = wide[i] * w[:, None, None]
            total = total + (_cut(part, PART_STEP) if truncated else part)
        yield band, total


def resize(
    picture: Pixels, size: tuple[int, int], method: Filter, finish: Callable[[Tensor], Tensor]
) -> Tensor:
    """A picture (H, W, C) at another size (h, w), as `resized_bands`; each band goes through `finish`."""
    return torch.cat([finish(band) for _, band in resized_bands(picture, size, method)])


def _cut(values: Tensor, step: float) -> Tensor:
    return (values / step).floor() * step


def _taps(old: int, new: int, method: Filter, fixed: bool) -> tuple[Tensor, Tensor]:
    """For each of `new` samples the indices of the old ones that it takes, and their weights: (taps, new).

    fixed: round the weights to the steps of OpenCV's, and return float64, in which their sums are exact.
    """
    reach = 1 if method == "bilinear" else 4
    place = (torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5
    taps = place.floor() + torch.arange(1 - reach, reach + 1)[:, None]
    distance = place - taps
    if method == "bilinear":
        weights = 1 - distance.abs()
    else:
        weights = torch.sinc(distance) * torch.sinc(distance / reach)
    weights = weights / weights.sum(dim=0)
    weights = (weights / WEIGHT_STEP).round() * WEIGHT_STEP if fixed else weights.float()
    return taps.clamp(0, old - 1).long(), weights
