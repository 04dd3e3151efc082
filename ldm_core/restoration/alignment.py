"""Alignment of a face: the similarity that brings its five points to the places of a template.

A similarity is rotation, scaling and translation, w = a z + b for points as complex numbers z = x + iy,
written as the matrix [[Re a, -Im a, Re b], [Im a, Re a, Im b]]. The scripts of the networks differ:

"facexlib" (CodeFormer, GFPGAN)  least median of squares (Rousseeuw 1984), in which a landmark that is off has
                                 no part, as OpenCV's `estimateAffinePartial2D` does it
"gpen"                           least squares over all five points (Umeyama 1991), to the template of ArcFace
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ldm_core.support.printable import shown

Alignment = Literal["facexlib", "gpen"]

SIZE = 512  # pixels of an aligned face, for which the template is written

# x and y of the left eye, the right eye, the tip of the nose, the left and the right corner of the mouth.
TEMPLATE = (
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
)
# The same in ArcFace's crop of 96 x 112 pixels. GPEN widens it to a square, with a quarter of 112 around it.
ARCFACE = (
    (30.29459953, 51.69630051),
    (65.53179932, 51.50139999),
    (48.02519989, 71.73660278),
    (33.54930115, 92.3655014),
    (62.72990036, 92.20410156),
)
GPEN_SHIFT, GPEN_SIZE = (8 + 28, 28), 112 + 2 * 28  # pixels

# The pairs of points that OpenCV's generator, whose seed is fixed, draws for five points.
_PAIRS = ((0, 4), (0, 3), (1, 2), (0, 1), (1, 4), (1, 3))
_FARTHEST = 1e6  # pixels; more is not a place in a photo

Array = np.ndarray[Any, Any]


def template(size: int = SIZE, alignment: Alignment = "facexlib") -> Array:
    """The places of the five points in an aligned face of `size` pixels: (5, 2), x and y.

    Raises ValueError for an unknown alignment.
    """
    if alignment == "facexlib":
        return np.array(TEMPLATE) * (size / SIZE)
    if alignment != "gpen":
        names = ", ".join(get_args(Alignment))
        raise ValueError(f"alignment must be one of {names}, not {shown(alignment)}")
    return (np.array(ARCFACE) + GPEN_SHIFT) * (size / GPEN_SIZE)


def similarity(points: Any, size: int = SIZE, alignment: Alignment = "facexlib") -> Tensor:
    """The similarity from a photo to an aligned face: (2, 3), float64.

    points: (5, 2), x and y in pixels of the left eye, the right eye, the tip of the nose, and the left and
        the right corner of the mouth. size: the width and height of the aligned face.
    alignment: whose template and estimate: "facexlib" or "gpen".
    Raises ValueError for another shape or alignment, values that are no numbers, and points that coincide.
    """
    found = _five_points(points)
    # As in OpenCV, both sets have the precision of float32.
    z, w = (_complex(one.astype(np.float32)) for one in (found, template(size, alignment)))
    if (z == z[0]).all():
        raise ValueError(f"expected five points of a face, got points that coincide: {_shown(found)}")
    near = np.ones(5, bool) if alignment == "gpen" else _inliers(z, w)
    a, b = _least_squares(z[near], w[near])
    return torch.tensor([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]], dtype=torch.float64)


def _inliers(z: Array, w: Array) -> Array:
    """Which points lie near the similarity with the least median of squared distances: (5,), bool."""
    fits = [_through(z, w, pair) for pair in _PAIRS if z[pair[0]] != z[pair[1]]]
    squares = [np.abs(a * z + b - w) ** 2 for a, b in fits]
    medians = [float(np.median(one)) for one in squares]
    best = int(np.argmin(medians))
    # The robust standard deviation (Rousseeuw and Leroy 1987, p. 202), of which 2.5 count as near.
    near = max(2.5 * 1.4826 * (1 + 5 / (5 - 2)) * medians[best] ** 0.5, 0.001)
    return squares[best] <= near**2


def inverse(matrix: Tensor) -> Tensor:
    """The inverse of an affine map, both (2, 3)."""
    linear = torch.linalg.inv(matrix[:, :2])
    return torch.cat([linear, -linear @ matrix[:, 2:]], dim=1)


def _five_points(points: Any) -> Array:
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


def _shown(points: Array) -> str:
    return ", ".join(f"({x:.4g}, {y:.4g})" for x, y in points)


def _complex(points: Array) -> Array:
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
