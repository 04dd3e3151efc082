"""Alignment, crops, masks and pasted faces against facexlib's steps in OpenCV, where that is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.faces import POINTS, astronaut
from torch import Tensor

from ldm_core.restoration import restore, similarity
from ldm_core.restoration.alignment import TEMPLATE, inverse
from ldm_core.restoration.warping import Region, resize, warp

cv2 = pytest.importorskip("cv2")
pytestmark = pytest.mark.slow  # an independent implementation that the package does not require

BORDER = (132, 133, 135)


def landmarks(count: int) -> list[np.ndarray]:
    """Faces of any size, turn and place with noisy points, in a third of which one is far off."""
    random = np.random.default_rng(5)
    found = []
    for k in range(count):
        angle, scale = random.uniform(-3, 3), random.uniform(0.05, 4)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        noise = random.normal(0, 1, (5, 2)) * scale * random.choice([1, 5, 15])
        points = np.array(TEMPLATE) @ turn.T + random.uniform(-500, 1500, 2) + noise
        if k % 3 == 0:
            points[random.integers(5)] += random.normal(0, 200, 2) * scale
        found.append(points)
    return found


def test_the_same_similarity_for_600_faces() -> None:
    corners = np.array([(0, 0), (512, 0), (0, 512), (512, 512)], float)
    for points in landmarks(600):
        wanted, _ = cv2.estimateAffinePartial2D(points, np.array(TEMPLATE), method=cv2.LMEDS)
        found = similarity(points).numpy()
        places = (corners - wanted[:, 2]) @ np.linalg.inv(wanted[:, :2]).T
        assert np.abs(places @ found[:, :2].T + found[:, 2] - corners).max() < 0.005


@pytest.mark.parametrize("size", [60, 224, 700])
def test_the_same_crops_and_enlarged_photos(size: int) -> None:
    photo = np.array(astronaut().resize((size, size)))
    to_face = similarity(np.array(POINTS) * (size / 224) - size / 8)
    square = Region(0, 0, 512, 512)
    found = warp(torch.from_numpy(photo), inverse(to_face), square, torch.tensor(BORDER)).round()
    wanted = cv2.warpAffine(
        photo, to_face.numpy(), (512, 512), borderMode=cv2.BORDER_CONSTANT, borderValue=BORDER
    )
    assert np.abs(found.numpy() - wanted).mean() < 1e-3
    assert np.abs(found.numpy() - wanted).max() <= 1
    methods: Any = {"lanczos": cv2.INTER_LANCZOS4, "bilinear": cv2.INTER_LINEAR}
    for method, number in methods.items():
        large = resize(torch.from_numpy(photo), (size * 3, size * 3), method, lambda x: (x + 0.5).floor())
        wanted = cv2.resize(photo, (size * 3, size * 3), interpolation=number)
        assert np.array_equal(large.clamp(0, 255).numpy(), wanted)


def steps(photo: np.ndarray, points: np.ndarray, upscale: int, classes: np.ndarray | None, both: bool) -> Any:
    """facexlib's steps around a network that darkens, as a uint8 picture."""
    matrix = similarity(points).numpy()
    crop = cv2.warpAffine(photo, matrix, (512, 512), borderMode=cv2.BORDER_CONSTANT, borderValue=BORDER)
    face = (((crop.astype(np.float32) / 127.5 - 1) * 0.5 - 0.4).clip(-1, 1) + 1) * 127.5
    back = cv2.invertAffineTransform(matrix) * upscale
    back[:, 2] += 0.5 * upscale if upscale > 1 else 0
    size = tuple(side * upscale for side in photo.shape[1::-1])
    large = cv2.resize(photo, size, interpolation=cv2.INTER_LANCZOS4)
    warped = cv2.warpAffine(face.round().astype(np.uint8), back, size)
    solid = cv2.warpAffine(np.ones((512, 512), np.float32), back, size)
    solid = cv2.erode(solid, np.ones((2 * upscale, 2 * upscale), np.uint8))
    edge = int(solid.sum() ** 0.5) // 20
    soft = cv2.erode(solid, np.ones((2 * edge, 2 * edge), np.uint8))
    soft = cv2.GaussianBlur(soft, (2 * edge + 1, 2 * edge + 1), 0)
    pasted = solid[..., None] * warped
    if classes is not None:
        shape = np.isin(classes, [*range(1, 14), 15]) * 255.0
        for _ in range(2):
            shape = cv2.GaussianBlur(shape, (101, 101), 11)
        shape[:10] = shape[-10:] = shape[:, :10] = shape[:, -10:] = 0
        shape = cv2.warpAffine(shape / 255, back, size)
        soft, pasted = (np.minimum(shape, soft), pasted) if both else (shape, warped)
    return (soft[..., None] * pasted + (1 - soft[..., None]) * large).astype(np.uint8)


@pytest.mark.parametrize("mask", ["square", "parsing", "both"])
@pytest.mark.parametrize(("scale", "upscale"), [(1, 1), (0.3, 3), (1.7, 2), (0.8, 1)])
def test_the_same_pasted_faces(mask: Any, scale: float, upscale: int) -> None:
    side = int(224 * scale)
    photo = astronaut().resize((side, side), Image.Resampling.BICUBIC)
    points = np.array(POINTS) * scale
    classes = np.zeros((512, 512), int)
    classes[150:400, 130:380], classes[:120] = 1, 17
    logits = torch.nn.functional.one_hot(torch.tensor(classes), 19).permute(2, 0, 1)[None].float()

    def darker(x: Tensor) -> Tensor:
        return x * 0.5 - 0.4

    found = restore(
        photo,
        darker,
        upscale=upscale,
        detector=lambda _: (np.zeros((1, 4)), points[None]),
        mask=mask,
        parser=None if mask == "square" else lambda x: logits,
    )
    wanted = steps(np.array(photo), points, upscale, None if mask == "square" else classes, mask == "both")
    difference = np.abs(np.asarray(found).astype(int) - wanted)
    assert difference.max() <= 1
    assert difference.mean() < 0.1
