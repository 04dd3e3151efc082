"""The repositories' own preprocessing for CLIP, against its formulas in loops and float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm_core.clip import preprocess_stretched
from ldm_core.config import ImageEncoderConfig
from ldm_core.images import image_to_tensor

SMALL = ImageEncoderConfig(image_size=16, patch_size=8)


def picture(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))


def blurred(line: list[float], size: int) -> list[float]:
    """One row of pixels, blurred for a resize to `size`, with mirrored ends."""
    sigma = max((len(line) / size - 1) / 2, 0.001)
    width = math.floor(max(4 * sigma, 3))
    width += width % 2 == 0
    weights = [math.exp(-((i - width // 2) ** 2) / (2 * sigma**2)) for i in range(width)]

    def at(i: int) -> float:
        i = abs(i)
        return line[2 * (len(line) - 1) - i if i >= len(line) else i]

    return [
        sum(w * at(i + k - width // 2) for k, w in enumerate(weights)) / sum(weights)
        for i in range(len(line))
    ]


def resized(line: list[float], size: int) -> list[float]:
    """One row of pixels by cubic convolution (Keys 1981, a = -0.75), first and last pixels aligned."""

    def weight(d: float) -> float:
        a, d = -0.75, abs(d)
        if d <= 1:
            return (a + 2) * d**3 - (a + 3) * d**2 + 1
        return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    out = []
    for i in range(size):
        x = i * (len(line) - 1) / (size - 1)
        near = range(math.floor(x) - 1, math.floor(x) + 3)
        out.append(sum(weight(x - j) * line[min(max(j, 0), len(line) - 1)] for j in near))
    return out


def along_both(function: Any, image: Tensor, size: int) -> Tensor:
    for _ in range(2):
        rows = [[function(row, size) for row in channel] for channel in image.tolist()]
        image = torch.tensor(rows, dtype=torch.float64).mT
    return image


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("shape", [(16, 16), (40, 17), (9, 50), (64, 100), (33, 12), (1, 40)])
def test_formulas(shape: tuple[int, int], antialias: bool) -> None:
    image = picture(*shape)
    expected = image[0].double()
    if antialias and 1 not in shape:
        expected = along_both(blurred, expected, 16)
    elif antialias:
        rows = [[blurred(row, 16) for row in channel] for channel in expected.tolist()]
        expected = torch.tensor(rows, dtype=torch.float64)
    expected = along_both(resized, expected, 16)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (SMALL.mean, SMALL.std))
    expected = (expected - mean) / std
    found = preprocess_stretched(image, SMALL, antialias=antialias)
    assert found.shape == (1, 3, 16, 16)
    assert float((found[0] - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_corners_stay_corners_and_sizes_may_differ() -> None:
    a, b = picture(20, 33), picture(7, 16)
    both = preprocess_stretched([a, b[0]], SMALL, antialias=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (SMALL.mean, SMALL.std))
    for one, image in zip(both, (a, b)):
        for i in (0, -1):
            torch.testing.assert_close((one * std + mean)[:, i, i], image[0, :, i, i])
    pil = Image.new("RGB", (30, 20), (10, 200, 30))
    assert torch.equal(
        preprocess_stretched(pil, SMALL, antialias=True),
        preprocess_stretched(image_to_tensor(pil), SMALL, antialias=True),
    )


@pytest.mark.parametrize("inputs", [None, "cat.png", [], torch.zeros(1, 3, 0, 4), torch.full((3, 4, 4), 2.0)])
def test_what_is_no_picture(inputs: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        preprocess_stretched(inputs, SMALL, antialias=True)
