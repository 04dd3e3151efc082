"""A face that a detector found, and which of several candidates for one face to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Face:
    """A face in a photo.

    box     (4,), float32: x1, y1, x2, y2 in pixels; it can reach over the border of the photo
    score   the probability that it is a face, in [0, 1]
    points  (5, 2), float32: x and y in pixels of the left eye, the right eye, the tip of the nose, and the
            left and the right corner of the mouth, left and right as seen in the photo
    """

    box: Tensor
    score: float
    points: Tensor


def suppress(boxes: Array, scores: Array, overlap: float, *, of_smaller: bool = False) -> list[int]:
    """Indices of the boxes (N, 4) that overlap with no box of a higher score, the highest score first.

    The overlap is intersection over union. of_smaller: intersection over the smaller one of two boxes, in
        pixels that belong to both ends of a side.
    """
    extra = 1 if of_smaller else 0
    boxes = boxes.astype(np.float64)
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + extra) * (y2 - y1 + extra)
    order = np.argsort(-scores, kind="stable")
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        wide = np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]) + extra
        high = np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]) + extra
        shared = wide.clip(0) * high.clip(0)
        whole = np.minimum(areas[best], areas[rest]) if of_smaller else areas[best] + areas[rest] - shared
        order = rest[shared <= overlap * whole]
    return kept
