"""The anchors of RetinaFace, squares of two sizes at every place of every level, and what offsets mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = (8, 16, 32)  # pixels between anchors, by level
SIZES = ((16, 32), (64, 128), (256, 512))  # pixels of a side
ANCHORS = 2  # at each place
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


@dataclass(frozen=True)
class Found:
    """What RetinaFace says of every anchor of a batch, in pixels.

    boxes (B, A, 4) as x1, y1, x2, y2; scores (B, A) in [0, 1]; points (B, A, 5, 2) as x, y: left eye, right
    eye, nose, left and right corner of the mouth, as seen in the picture.
    """

    boxes: Tensor
    scores: Tensor
    points: Tensor


def anchors(height: int, width: int) -> Tensor:
    """The anchors of a photo as centre x, centre y and side, in pixels: (A, 3), float32.

    In the order of levels, rows, columns and sizes. A level has ceil(height / step) rows.
    """
    found = []
    for step, sizes in zip(STEPS, SIZES):
        rows, columns = -(-height // step), -(-width // step)
        y, x, size = torch.meshgrid(
            (torch.arange(rows) + 0.5) * step,
            (torch.arange(columns) + 0.5) * step,
            torch.tensor(sizes, dtype=torch.float32),
            indexing="ij",
        )
        found.append(torch.stack([x, y, size], dim=-1).flatten(0, 2))
    return torch.cat(found)


def decode(outputs: tuple[Tensor, Tensor, Tensor], height: int, width: int) -> Found:
    """The network's outputs for photos of this size, in pixels. Raises ValueError for another size's."""
    boxes, logits, points = outputs
    places = anchors(height, width).to(boxes)
    if len(places) != boxes.shape[1]:
        raise ValueError(
            f"expected the outputs of {len(places):,} anchors for {height} x {width} pixels, "
            f"got {boxes.shape[1]:,}"
        )
    centres, sides = places[:, :2], places[:, 2:]
    middle = centres + boxes[..., :2] * CENTRE_VARIANCE * sides
    half = sides * torch.exp(boxes[..., 2:] * SIZE_VARIANCE) / 2
    corners = torch.cat([middle - half, middle + half], dim=-1)
    offsets = points.unflatten(2, (5, 2)) * CENTRE_VARIANCE  # (B, A, 10) -> (B, A, 5, 2)
    located = centres[:, None] + offsets * sides[:, None]
    return Found(corners, logits.softmax(dim=-1)[..., 1], located)
