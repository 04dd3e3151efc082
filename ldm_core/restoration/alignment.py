"""Alignment of a face: the similarity that brings its five points to the places of a template.

A similarity is rotation, scaling and translation, w = a z + b for points as complex numbers z = x + iy,
written as the matrix [[Re a, -Im a, Re b], [Im a, Re a, Im b]]. It is estimated by least median of squares
(Rousseeuw 1984), in which a landmark that is off has no part, as OpenCV's `estimateAffinePartial2D` does it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

SIZE = 512  # pixels of an aligned face, for which the template is written

# x and y of the left eye, the right eye, the tip of the nose, the left and the right corner of the mouth.
TEMPLATE = (
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
)

# The pairs of points that OpenCV's generator, whose seed is fixed, draws for five points.
_PAIRS = ((0, 4), (0, 3), (1, 2), (0, 1), (1, 4), (1, 3))
_FARTHEST = 1e6  # pixels; more is not a place in a photo


def similarity(points: Any, size: int = SIZE) -> Tensor:
    """The similarity from a photo to an aligned face: (2, 3), float64.

    points: (5, 2), x and y in pixels of the left eye, the right eye, the tip of the nose, and the left and
        the right corner of the mouth. size: the width and height of the aligned face.
    Raises ValueError for another shape, values that are no numbers, and points that coincide.
    """
    found = _five_points(points)
    # As in OpenCV, both sets have the precision of float32.
    z = _complex(found.astype(np.float32))
    w = _complex((np.array(TEMPLATE) * (size / SIZE)).astype(np.float32))
    fits = [_through(z, w, pair) for pair in _PAIRS if z[pair[0]] != z[pair[1]]]
    if not fits:
        raise ValueError(f"expected five points of a face, got points that coincide: {_shown(found)}")
    squares = [np.abs(a * z + b - w) ** 2 for a, b in fits]
    medians = [float(np.median(one)) for one in squares]
    best = int(np.argmin(medians))
    # The robust standard deviation (Rousseeuw and Leroy 1987, p. 202), of which 2.5 count as near.
    near = max(2.5 * 1.4826 * (1 + 5 / (5 - 2)) * medians[best] ** 0.5, 0.001)
    a, b = _least_squares(*(one[squares[best] <= near**2] for one in (z, w)))
    return torch.tensor([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]], dtype=torch.float64)


def inverse(matrix: Tensor) -> Tensor:
    """The inverse of an affine map, both (2, 3)."""
    linear = torch.linalg.inv(matrix[:, :2])
    return torch.cat([linear, -linear @ matrix[:, 2:]], dim=1)


def _five_points(points: Any) -> np.ndarray[Any, Any]:
    try:
        found = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"expected five points (5, 2) as numbers, not {type(points).__name__} of something else"
        ) from None
    if found.shape != (5, 2):
        raise ValueError(f"expected five points (5, 2), got {found.shape}")
    if not (np.abs(found) <= _FARTHEST).all():  # false for NaN, too
        raise ValueError(
            f"expected five points within {_FARTHEST:,.0f} pixels of the photo, got {_shown(found)}"
        )
    return found


def _shown(points: np.ndarray[Any, Any]) -> str:
    return ", ".join(f"({x:.4g}, {y:.4g})" for x, y in points)


def _complex(points: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return points[:, 0].astype(np.float64) + 1j * points[:, 1].astype(np.float64)


def _through(z: Any, w: Any, pair: tuple[int, int]) -> tuple[complex, complex]:
    """The similarity that maps two points exactly."""
    i, j = pair
    a = (w[j] - w[i]) / (z[j] - z[i])
    return a, w[i] - a * z[i]


def _least_squares(z: Any, w: Any) -> tuple[complex, complex]:
    centred = z - z.mean()
    a = (centred.conj() * (w - w.mean())).sum() / (np.abs(centred) ** 2).sum()
    return a, w.mean() - a * z.mean()
