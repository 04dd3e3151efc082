"""Photos of a face for the tests of restoration, and where an independent implementation finds the face."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

ASTRONAUT = Path(__file__).parents[1] / "data" / "astronaut.png"  # NASA, in the public domain

# By facenet-pytorch 2.6.0.
BOX = (68.49098, 53.33806, 156.96324, 166.53436)
SCORE = 0.99997592
POINTS = (
    (92.80975, 94.01283),
    (135.32141, 96.02397),
    (113.76384, 120.81314),
    (91.40731, 133.26924),
    (133.83084, 134.27739),
)


def astronaut() -> Image.Image:
    """224x224 pixels around the face, in RGB."""
    with Image.open(ASTRONAUT) as image:
        return image.convert("RGB")


def crowd(columns: int, rows: int, side: int = 80) -> tuple[Image.Image, np.ndarray]:
    """A photo of many faces, and the points of each: (N, 5, 2)."""
    photo = Image.new("RGB", (columns * side, rows * side), "grey")
    face = astronaut().resize((side, side))
    points = []
    for k in range(columns * rows):
        corner = np.array([k % columns * side, k // columns * side])
        photo.paste(face, tuple(corner.tolist()))
        points.append(np.array(POINTS) * (side / 224) + corner)
    return photo, np.array(points)


def in_mode(photo: Image.Image, mode: str) -> Image.Image:
    """An RGB photo in another mode, with an alpha channel that differs everywhere where the mode has one."""
    if mode == "I;16":
        return Image.fromarray(np.array(photo.convert("L")).astype(np.uint16) * 257)
    photo = photo.convert(mode)
    if mode in ("LA", "RGBA"):
        photo.putalpha(Image.linear_gradient("L").resize(photo.size).point(lambda level: 100 + level // 2))
    return photo
