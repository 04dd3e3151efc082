"""Canvases for outpainting: a picture on a larger field, and the mask of what is to be painted around it.

Everything is placed on whole latents, so that no latent is partly known. The field around the picture repeats
its edge, which the encoder sees near the border and the mask hides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from ldm_core.support.printable import shown

if TYPE_CHECKING:
    from PIL.Image import Image

Direction = Literal["left", "right", "up", "down"]


def zoomed_out(picture: Image, factor: float, unit: int) -> tuple[Image, Image]:
    """(canvas, mask) of the picture's size with the picture, `factor` times smaller, in the middle.

    unit: pixels of a latent. The small picture's sides are rounded so that its borders lie between latents.
    Raises ValueError for a factor with which nothing is left of the picture, or nothing around it.
    """
    from PIL import Image as PIL

    if not isinstance(factor, int | float) or not 1 < factor <= 16:
        raise ValueError(f"zoom-out takes a factor above 1, up to 16, not {shown(factor)}")
    sides = []
    for side in picture.size:
        around = max(1, round((side - side / factor) / 2 / unit)) * unit  # on each side
        if side - 2 * around < unit:
            raise ValueError(f"zoom-out by {factor:g} leaves nothing of a side of {side} pixels")
        sides.append((side - 2 * around, around))
    (width, left), (height, top) = sides
    small = picture.resize((width, height), PIL.Resampling.LANCZOS)
    return _on_canvas(small, (left, left, top, top))


def panned(picture: Image, direction: Direction, amount: float, unit: int) -> tuple[Image, Image]:
    """(canvas, mask) of the picture and a field beside it, `amount` times as large, to one side.

    unit: the field's width is a multiple of this. Raises ValueError for another direction or amount.
    """
    if direction not in get_args(Direction):
        raise ValueError(f"pan takes one of {', '.join(get_args(Direction))}, not {shown(direction)}")
    if not isinstance(amount, int | float) or not 0 < amount <= 4:
        raise ValueError(f"pan takes an amount above 0, up to 4, not {shown(amount)}")
    side = picture.width if direction in ("left", "right") else picture.height
    added = max(1, round(amount * side / unit)) * unit
    return _on_canvas(picture, tuple(added if one == direction else 0 for one in get_args(Direction)))


def _on_canvas(picture: Image, around: tuple[int, ...]) -> tuple[Image, Image]:
    """The canvas and the mask for pixels added at the left, right, top and bottom."""
    from PIL import Image as PIL

    left, right, top, bottom = around
    pixels = np.asarray(picture.convert("RGB"))  # (H, W, 3)
    canvas = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), mode="edge")
    mask = np.pad(np.zeros(pixels.shape[:2], np.uint8), ((top, bottom), (left, right)), constant_values=255)
    return PIL.fromarray(canvas), PIL.fromarray(mask)
