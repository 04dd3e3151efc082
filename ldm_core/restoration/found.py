"""The faces of a photo that are to be restored, by the bundled detector or by a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_core.restoration.mtcnn.cascade import SMALLEST, find_faces
from ldm_core.restoration.mtcnn.networks import bundled
from ldm_core.restoration.photo import Photo

SMALLEST_PART = 1 / 50  # of the photo's shorter side: the smallest faces in large photos
EYE_DISTANCE = 5.0  # pixels; faces whose eyes are nearer show too little to restore
FARTHEST = 1e6  # pixels


def find(photo: Photo, detector: Any, threshold: float) -> list[Tensor]:
    """The five points (5, 2), float64, of each face that has the score and the size to be restored.

    Raises ValueError for a detector that returns something else than faces.
    """
    if detector is None:
        smallest = max(SMALLEST, min(photo.size) * SMALLEST_PART)
        boxes, points = _unpacked(find_faces(photo.levels(), bundled(), smallest))
    elif callable(detector):
        boxes, points = _unpacked(detector(photo.rgb()))
    else:
        raise ValueError(
            f"expected the detector as a callable, not {type(detector).__name__}; it takes a PIL image and "
            "returns (boxes (N, 4), points (N, 5, 2))"
        )
    scores = boxes[:, 4] if boxes.shape[1] == 5 else torch.ones(len(boxes))
    wide = (points[:, 0] - points[:, 1]).norm(dim=1) >= EYE_DISTANCE
    return list(points[(scores >= threshold) & wide])


def _unpacked(found: Any) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) or (N, 5), and points (N, 5, 2)."""
    if isinstance(found, Sequence) and all(hasattr(face, "points") for face in found):
        rows = [[*face.box, face.score] for face in found]
        found = np.array(rows, np.float64).reshape(-1, 5), [face.points for face in found]
    if not isinstance(found, Sequence) or len(found) != 2:
        raise ValueError(
            f"the detector must return (boxes (N, 4), points (N, 5, 2)), not {type(found).__name__}"
        )
    boxes, points = (_numbers(values, name) for values, name in zip(found, ("boxes", "points")))
    count = len(points)
    if not count and not len(boxes):
        return torch.zeros(0, 4), torch.zeros(0, 5, 2)
    if boxes.shape not in ((count, 4), (count, 5)) or points.shape != (count, 5, 2):
        raise ValueError(
            "the detector must return boxes (N, 4), or (N, 5) with scores, and points (N, 5, 2), not "
            f"{tuple(boxes.shape)} and {tuple(points.shape)}"
        )
    for values, name in ((boxes, "boxes"), (points, "points")):
        if not (values.abs() <= FARTHEST).all():  # false for NaN, too
            raise ValueError(f"the detector returned {name} with NaN, infinity or more than {FARTHEST:,.0f}")
    return boxes, points


def _numbers(values: Any, name: str) -> Tensor:
    try:
        if isinstance(values, Sequence) and not isinstance(values, str):
            values = [np.asarray(one, np.float64) for one in values]
        return torch.from_numpy(np.asarray(values, dtype=np.float64).copy())
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"the detector must return its {name} as numbers, not {type(values).__name__} of something else"
        ) from None
