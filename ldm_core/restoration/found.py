"""The faces of a photo, by the bundled detector, by a RetinaFace, or by a user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_core.restoration.face import Face
from ldm_core.restoration.mtcnn import bundled, find_faces
from ldm_core.restoration.mtcnn import detect as detect_by_mtcnn
from ldm_core.restoration.mtcnn.cascade import SMALLEST
from ldm_core.restoration.photo import Photo, open_photo
from ldm_core.restoration.retinaface import FaceDetector, RetinaFace

SMALLEST_PART = 1 / 50  # of the photo's shorter side: the smallest faces in large photos
EYE_DISTANCE = 5.0  # pixels; faces whose eyes are nearer show too little to restore
FARTHEST = 1e6  # pixels


@dataclass(frozen=True)
class Located:
    """points (5, 2), float64, of a face to restore, and the shorter side of its box in pixels."""

    points: Tensor
    side: float


def detect(photo: Any, smallest: float = SMALLEST, *, detector: Any = None) -> list[Face]:
    """The faces in a photo, the most probable first.

    photo: a PIL image of any mode, which is rotated upright first, or a tensor (3, H, W) or (1, 3, H, W) in
        [0, 1].
    smallest: the size in pixels of the smallest faces that the bundled MTCNN finds, at least 12; the time is
        proportional to 1 / smallest².
    detector: instead of the MTCNN, as for `restore`; `smallest` is not for it.
    Raises ValueError for other photos, sizes or detectors, and for a detector that returns something else.
    """
    if detector is None:
        return detect_by_mtcnn(photo, smallest)
    boxes, points = _by_detector(open_photo(photo), detector)
    scores = _scores(boxes)
    order = scores.argsort(descending=True, stable=True)
    return [Face(boxes[k, :4].float(), float(scores[k]), points[k].float()) for k in order.tolist()]


def find(photo: Photo, detector: Any, threshold: float) -> list[Located]:
    """Each face that has the score and the size to be restored.

    Raises ValueError for a detector that returns something else than faces.
    """
    if detector is None:
        smallest = max(SMALLEST, min(photo.size) * SMALLEST_PART)
        boxes, points = _unpacked(find_faces(photo.levels(), bundled(), smallest))
    else:
        boxes, points = _by_detector(photo, detector)
    wide = (points[:, 0] - points[:, 1]).norm(dim=1) >= EYE_DISTANCE
    sides = (boxes[:, 2:4] - boxes[:, :2]).amin(dim=1)
    chosen = (_scores(boxes) >= threshold) & wide
    return [Located(five, float(side)) for five, side in zip(points[chosen], sides[chosen])]


def _by_detector(photo: Photo, detector: Any) -> tuple[Tensor, Tensor]:
    network = getattr(detector, "network", detector)
    if isinstance(network, RetinaFace):
        detector = detector if isinstance(detector, FaceDetector) else FaceDetector(network)
        return _unpacked(detector.find(photo.levels()))
    if not callable(detector):
        raise ValueError(
            f"expected the detector as a RetinaFace or a callable, not {type(detector).__name__}; a callable "
            "takes a PIL image and returns (boxes (N, 4), points (N, 5, 2))"
        )
    return _unpacked(detector(photo.rgb()))


def _scores(boxes: Tensor) -> Tensor:
    return boxes[:, 4] if boxes.shape[1] == 5 else torch.ones(len(boxes))


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
