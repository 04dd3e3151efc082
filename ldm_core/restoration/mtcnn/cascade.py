"""MTCNN: from a photo to faces, in three stages of which each sees what the one before let through.

    P-Net   slides over a pyramid of the photo, in which faces of every size are 12 pixels large once
    R-Net   sees each candidate with 24 pixels, rejects most of them and corrects the rest
    O-Net   sees the rest with 48 pixels, and names five points

as facenet-pytorch computes it, whose weights are bundled, with one exception: where a candidate reaches over
the border of the photo, facenet-pytorch stretches the part inside to a square, which puts the points of such
faces 10 to 30 pixels off; here grey fills the square. Boxes are (x1, y1, x2, y2) in pixels of the photo.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.images import image_to_tensor
from ldm_core.restoration.face import Array, Face, suppress
from ldm_core.restoration.mtcnn.networks import MTCNN, bundled
from ldm_core.restoration.warping import Pixels
from ldm_core.support.limits import is_number
from ldm_core.support.printable import shown

SEEN, STRIDE = 12, 2  # pixels that P-Net sees, and between its places
SMALLEST = 20  # pixels of the smallest faces
FACTOR = 0.709  # between the scales of the pyramid
THRESHOLDS = (0.6, 0.7, 0.7)  # of the probabilities of the three stages
OVERLAP_WITHIN, OVERLAP = 0.5, 0.7  # that suppress a candidate: within a scale, and later

GREY = 127  # the level beyond the border of the photo, which the networks see as 0

# Bounds of time and memory, which no photo of faces reaches.
BAND = 128  # rows of places that P-Net computes at a time
MOST = 20_000  # candidates of one scale; the best ones are kept
SMALL = 2**18  # pixels that are converted to floating-point numbers at a time
BATCH = 512  # candidates that R-Net and O-Net see at a time


def detect(photo: Any, smallest: float = SMALLEST) -> list[Face]:
    """The faces in a photo, the most probable first.

    photo: a PIL image of any mode, which is rotated upright first, or a tensor (3, H, W) or (1, 3, H, W) in
        [0, 1]. smallest: the size in pixels of the smallest faces to find, at least 12; the time is
        proportional to 1 / smallest².
    Raises ValueError for other photos or sizes.
    """
    if not (is_number(smallest) and smallest >= SEEN):
        raise ValueError(f"smallest must be a number of at least {SEEN} pixels, not {shown(smallest)}")
    pictures = image_to_tensor(photo)
    if len(pictures) != 1:
        raise ValueError(f"expected one photo, got {len(pictures)}")
    pixels = (pictures[0] * 255).round().to(torch.uint8).permute(1, 2, 0)
    return find_faces(pixels, bundled(), smallest)


@torch.inference_mode()
def find_faces(pixels: Pixels, networks: MTCNN, smallest: float = SMALLEST) -> list[Face]:
    """The faces in a photo (H, W, 3), uint8 RGB, the most probable first. No copy of the photo is made."""
    boxes = _proposals(pixels, networks, smallest)
    boxes = _refined(pixels, networks, boxes)
    return _output(pixels, networks, boxes)


def _proposals(pixels: Pixels, networks: MTCNN, smallest: float) -> Array:
    """The candidates of P-Net: (N, 4)."""
    found = [_at_scale(pixels, networks, scale) for scale in _scales(pixels, smallest)]
    if not found:
        return np.zeros((0, 4), np.float32)
    candidates = np.concatenate(found)
    candidates = candidates[suppress(candidates[:, :4], candidates[:, 4], OVERLAP)]
    return _corrected(candidates[:, :4], candidates[:, 5:], extra=0)


def _scales(pixels: Pixels, smallest: float) -> Iterator[float]:
    scale = SEEN / smallest
    side = min(pixels.shape[:2]) * scale
    while side >= SEEN:
        yield scale
        scale, side = scale * FACTOR, side * FACTOR


def _at_scale(pixels: Pixels, networks: MTCNN, scale: float) -> Array:
    """The candidates of one scale: box, probability and four corrections, (N, 9)."""
    height, width = (int(side * scale + 1) for side in pixels.shape[:2])
    # The places of P-Net: its pooling, of two pixels, also has a place for a single last row.
    places = (height - 2 + 1) // STRIDE - 4
    found = []
    for start in range(0, places, BAND):
        end = min(start + BAND, places)
        last = height if end == places else STRIDE * (end - 1) + SEEN
        band = _normalised(area_band(pixels, range(STRIDE * start, last), height, width))
        scores, corrections = networks.pnet(band)
        y, x = (scores[0] >= THRESHOLDS[0]).nonzero(as_tuple=True)
        corners = torch.stack([x, y + start], dim=1) * STRIDE + 1
        boxes = torch.cat([corners, corners + SEEN - 1], dim=1).div(scale).floor()
        found.append(torch.cat([boxes, scores[0, y, x, None], corrections[0, :, y, x].T], dim=1).numpy())
    candidates = np.concatenate(found)
    if len(candidates) > MOST:
        candidates = candidates[np.argsort(-candidates[:, 4], kind="stable")[:MOST]]
    return candidates[suppress(candidates[:, :4], candidates[:, 4], OVERLAP_WITHIN)]


def area_band(pixels: Pixels, rows: range, height: int, width: int) -> Tensor:
    """Some rows of a photo (H, W, 3) at the size (height, width), as means of areas: (1, 3, rows, width)."""
    tall = len(pixels)
    if tall * pixels.shape[1] <= SMALL and len(rows) == height:
        return F.adaptive_avg_pool2d(pixels[:].permute(2, 0, 1).float(), (height, width))[None]
    step = max(1, SMALL // pixels.shape[1])
    parts = []
    for some in (rows[k : k + step] for k in range(0, len(rows), step)):
        means = [_mean_row(pixels, i * tall // height, -(-(i + 1) * tall // height)) for i in some]
        wide = torch.stack(means).permute(2, 0, 1)  # (3, rows, W)
        parts.append(F.adaptive_avg_pool2d(wide, (len(some), width)))
    return torch.cat(parts, dim=1)[None]


def _mean_row(pixels: Pixels, first: int, last: int) -> Tensor:
    """The mean (W, 3) of the rows first..last - 1. The sums are whole numbers, and exact."""
    step = max(1, SMALL // pixels.shape[1])
    parts = (pixels[k : min(k + step, last)].float().sum(dim=0) for k in range(first, last, step))
    return sum(parts, torch.zeros(())) / (last - first)


def _normalised(levels: Tensor) -> Tensor:
    return (levels - 127.5) / 128


def _refined(pixels: Pixels, networks: MTCNN, boxes: Array) -> Array:
    """The candidates that R-Net lets through: (N, 4)."""
    squares, crops = _crops(pixels, boxes, 24)
    scores, corrections = _batched(networks.rnet, crops)
    chosen = scores > THRESHOLDS[1]
    squares, scores, corrections = squares[chosen], scores[chosen], corrections[chosen]
    kept = suppress(squares, scores, OVERLAP)
    return _corrected(squares[kept], corrections[kept], extra=1)


def _output(pixels: Pixels, networks: MTCNN, boxes: Array) -> list[Face]:
    squares, crops = _crops(pixels, boxes, 48)
    scores, corrections, points = _batched(networks.onet, crops)
    chosen = scores > THRESHOLDS[2]
    squares, scores, corrections, points = (one[chosen] for one in (squares, scores, corrections, points))
    corners, sides = squares[:, :2], squares[:, 2:] - squares[:, :2] + 1
    # (N, 10), five x and five y -> (N, 5, 2)
    points = points.reshape(-1, 2, 5).transpose(0, 2, 1) * sides[:, None] + corners[:, None] - 1
    boxes = _corrected(squares, corrections, extra=1)
    kept = suppress(boxes, scores, OVERLAP, of_smaller=True)
    return [
        Face(torch.from_numpy(boxes[k]), float(scores[k]), torch.from_numpy(points[k].copy())) for k in kept
    ]


def _batched(network: torch.nn.Module, crops: list[Tensor]) -> list[Array]:
    """The results of a network for all crops; for none of them as well."""
    size = 48 if hasattr(network, "dense6_3") else 24
    batches = [torch.stack(crops[i : i + BATCH]) for i in range(0, len(crops), BATCH)]
    results = [network(_normalised(batch)) for batch in batches or [torch.zeros(0, 3, size, size)]]
    return [torch.cat(parts).numpy() for parts in zip(*results)]


def _crops(pixels: Pixels, boxes: Array, size: int) -> tuple[Array, list[Tensor]]:
    """The boxes as squares about their centres, (N, 4), and the pixels in them, (3, size, size) each.

    Squares without a pixel in the photo are left out.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.max(axis=1, keepdims=True, initial=0)
    corners = boxes[:, :2] + sides * 0.5 - longer * 0.5
    squares = np.concatenate([corners, corners + longer], axis=1).astype(np.float32)
    kept, crops = [], []
    for k, (x1, y1, x2, y2) in enumerate(np.trunc(squares).astype(int).tolist()):
        square = _square(pixels, x1 - 1, y1 - 1, x2, y2)
        if square is not None:
            kept.append(k)
            crops.append(area_band(square, range(size), size, size)[0])
    return squares[kept], crops


def _square(pixels: Pixels, left: int, top: int, right: int, bottom: int) -> Tensor | None:
    """A part of the photo, with grey beyond the photo's border: (h, w, 3). None if all of it is beyond."""
    height, width = pixels.shape[:2]
    inside = pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    if not inside.numel():
        return None
    beyond = (0, 0, max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0))
    return F.pad(inside, beyond, value=GREY) if any(beyond) else inside


def _corrected(boxes: Array, corrections: Array, extra: int) -> Array:
    """Boxes (N, 4) moved by corrections (N, 4), which are fractions of their sides (plus `extra` pixels)."""
    sides = boxes[:, 2:] - boxes[:, :2] + extra
    return boxes + corrections * np.concatenate([sides, sides], axis=1)
