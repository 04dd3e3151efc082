"""Overlapping windows that cover a picture, and the weighted mean of what a function computes in each.

    result = sum_i w_i f(x_i) / sum_i w_i,    x_i: window i of x

The "convolutional sampling" of larger pictures in latent diffusion (arXiv:2112.10752, section 4.3.2) and the
panoramas of MultiDiffusion (Bar-Tal et al. 2023, arXiv:2302.08113, equation 5). CompVis's counterpart is
`LatentDiffusion.get_fold_unfold` with `split_input_params`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ldm_core.support.limits import MAX_SIZE, is_number, is_whole
from ldm_core.support.printable import shown

Weights = Literal["pyramid", "ramp", "equal"]
Size = int | tuple[int, int]  # of both axes, or (rows, columns)


@dataclass(frozen=True)
class Place:
    """Where one window of height x width is in a picture of `picture` rows and columns.

    row, column: its place in the grid of windows, which has `grid` rows and columns.
    """

    top: int
    left: int
    height: int
    width: int
    picture: tuple[int, int]
    row: int
    column: int
    grid: tuple[int, int]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x, y, width, height) relative to the picture; x to the right, y down."""
        rows, columns = self.picture
        return self.left / columns, self.top / rows, self.width / columns, self.height / rows

    def scaled(self, scale: Fraction) -> Place:
        """The same place in a picture that is `scale` times as large."""
        sizes = (self.top, self.left, self.height, self.width, *self.picture)
        top, left, height, width, *picture = (int(size * scale) for size in sizes)
        whole = (picture[0], picture[1])
        return Place(top, left, height, width, whole, self.row, self.column, self.grid)

    def index(self) -> tuple[Any, ...]:
        """The index (..., rows, columns); columns over the right edge continue at the left one."""
        rows, right = slice(self.top, self.top + self.height), self.left + self.width
        if right <= self.picture[1]:
            return ..., rows, slice(self.left, right)
        return ..., rows, torch.arange(self.left, right) % self.picture[1]


@dataclass(frozen=True)
class Windows:
    """Windows of one size, a stride apart. Both are a number, or (rows, columns).

    The last window of an axis is moved to the picture's edge, so that windows cover every picture. A window
    larger than the picture shrinks to it. stride: by default half of the size.

    weights: within a window.
        "pyramid": the smallest distance to an edge, 0 at the edge and 1/2 in the middle, clipped to `clip`.
        "ramp": 1, falling linearly to 0 over the overlap at the edges inside the picture.
        "equal": the plain mean, as in MultiDiffusion.
    tie_breaker: weight the windows too, by the pyramid of their places in the grid of windows.
    wrap: the picture's right edge continues at the left one, as in a panorama of 360 degrees.

    Raises ValueError for a stride that leaves gaps, and for other values.
    """

    size: Size
    stride: Size | None = None
    weights: Weights = "pyramid"
    tie_breaker: bool = False
    wrap: bool = False
    clip: tuple[float, float] = (0.01, 0.5)

    def __post_init__(self) -> None:
        for name in ("size", "stride"):
            value = getattr(self, name)
            if value is None and name == "stride":
                continue
            both = value if isinstance(value, tuple) else (value, value)
            if len(both) != 2 or not all(is_whole(one, 1, MAX_SIZE) for one in both):
                raise ValueError(f"windows: {name} must be one or two positive ints, not {shown(value)}")
        if any(stride > size for size, stride in zip(self.sizes, self.strides)):
            raise ValueError(
                f"windows of {self.size} need a stride of at most {self.size}, got {self.stride}"
            )
        if self.weights not in get_args(Weights):
            expected = ", ".join(repr(name) for name in get_args(Weights))
            raise ValueError(f"windows: weights must be one of {expected}, not {shown(self.weights)}")
        if self.wrap and (self.tie_breaker or self.weights == "ramp"):
            raise ValueError("windows that wrap have no first and last column for a tie breaker or ramps")
        low_high = isinstance(self.clip, tuple) and len(self.clip) == 2 and all(map(is_number, self.clip))
        if not low_high or not 0 < self.clip[0] <= self.clip[1]:
            raise ValueError(
                f"windows: clip must be (low, high) with 0 < low <= high, not {shown(self.clip)}"
            )

    @property
    def sizes(self) -> tuple[int, int]:
        """Rows and columns of a window."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def strides(self) -> tuple[int, int]:
        """Rows and columns from one window to the next."""
        if self.stride is None:
            return max(self.sizes[0] // 2, 1), max(self.sizes[1] // 2, 1)
        return self.stride if isinstance(self.stride, tuple) else (self.stride, self.stride)

    def times(self, factor: int) -> Windows:
        """The windows of a picture that is `factor` times as large."""
        (height, width), (down, right) = self.sizes, self.strides
        return replace(self, size=(factor * height, factor * width), stride=(factor * down, factor * right))

    def places(self, height: int, width: int) -> list[Place]:
        """The windows of a picture, row by row."""
        size = (min(self.sizes[0], height), min(self.sizes[1], width))
        tops = starts(height, size[0], self.strides[0])
        lefts = [*range(0, width, self.strides[1])] if self.wrap else starts(width, size[1], self.strides[1])
        grid = (len(tops), len(lefts))
        return [
            Place(top, left, *size, (height, width), row, column, grid)
            for row, top in enumerate(tops)
            for column, left in enumerate(lefts)
        ]

    def weight(self, place: Place) -> Tensor:
        """The weights (height, width) of a window, float64."""
        shape = (place.height, place.width)
        if self.weights == "pyramid":
            share = self._pyramid(shape)
        elif self.weights == "ramp":
            vertical = self._ramp(place.height, 0, place.row, place.grid[0])
            share = vertical[:, None] * self._ramp(place.width, 1, place.column, place.grid[1])
        else:
            share = torch.ones(shape, dtype=torch.float64)
        return share * self._pyramid(place.grid)[place.row, place.column] if self.tie_breaker else share

    def _pyramid(self, shape: tuple[int, int]) -> Tensor:
        rows, columns = (_distance(size) for size in shape)
        return torch.minimum(rows[:, None], columns).clamp(*self.clip)

    def _ramp(self, size: int, axis: int, index: int, count: int) -> Tensor:
        """Weights along one axis; `size` pixels of the result are a window's size before scaling."""
        weights = torch.ones(size, dtype=torch.float64)
        soft = size - size * self.strides[axis] // self.sizes[axis]
        rise = (torch.arange(soft, dtype=torch.float64) + 0.5) / max(soft, 1)
        if index > 0:
            weights[:soft] *= rise
        if index < count - 1:
            weights[size - soft :] *= rise.flip(0)
        return weights

    def apply(
        self,
        function: Callable[[Tensor, Sequence[Place]], Tensor],
        x: Tensor,
        *,
        scale: Fraction | int = 1,
        at_once: int = 1,
    ) -> Tensor:
        """The weighted mean of what `function` computes in all windows of x (B, C, h, w).

        function: maps n windows (n * B, C, height, width), one after the other, and their n places to
            (n * B, C', scale * height, scale * width). n is at most `at_once`.
        scale: pixels of the result per pixel of x along each axis; it must map windows to whole pixels.

        Weights are those of the result's pixels, and sums in float32 at least. The result has x's dtype; if
        one window is the whole picture, it is the function's own.
        """
        scale = Fraction(scale)
        places = self.places(x.shape[2], x.shape[3])
        lengths = [n for p in places for n in (p.top, p.left, p.height, p.width, *p.picture)]
        if any((length * scale).denominator != 1 for length in lengths):
            raise ValueError(
                f"windows of {self.size} every {self.stride} and the size {tuple(x.shape[2:])} must be "
                f"multiples of {1 / scale}"
            )
        if len(places) == 1:
            return function(x, places)
        total: Tensor | None = None
        for first in range(0, len(places), at_once):
            some = places[first : first + at_once]
            out = function(torch.cat([x[place.index()] for place in some]), some)
            if total is None:
                size = [int(n * scale) for n in x.shape[2:]]
                wide = torch.promote_types(out.dtype, torch.float32)
                total = out.new_zeros(len(x), out.shape[1], *size, dtype=wide)
                weight = out.new_zeros(size, dtype=wide)
            for place, part in zip((place.scaled(scale) for place in some), out.split(len(x))):
                share = self.weight(place).to(weight)
                total[place.index()] += share * part
                weight[place.index()] += share
        assert total is not None
        return (total / weight).to(x.dtype)


def starts(length: int, size: int, stride: int) -> list[int]:
    """Positions of windows of `size`, `stride` apart; the last one ends at `length`."""
    return [*range(0, length - size, stride), length - size]


def _distance(size: int) -> Tensor:
    """The distance of each of `size` pixels to the nearer end, from 0 to at most 1/2; 1/2 for one pixel."""
    if size == 1:
        return torch.full((1,), 0.5, dtype=torch.float64)
    place = torch.arange(size, dtype=torch.float64) / (size - 1)
    return torch.minimum(place, 1 - place)
