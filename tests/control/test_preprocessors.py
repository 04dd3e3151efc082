"""Hints from pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ldm_core.control.preprocessors import canny, masked


def disc(value: int) -> Image.Image:
    picture = Image.new("RGB", (64, 48), "black")
    ImageDraw.Draw(picture).ellipse((12, 8, 44, 40), fill=(value, value, value))
    return picture


def test_canny_finds_the_border_of_a_disc() -> None:
    edges = canny(disc(255))
    assert edges.shape == (1, 3, 48, 64)
    assert set(edges.unique().tolist()) == {0.0, 1.0}
    rows, columns = np.nonzero(edges[0, 0].numpy())
    radius = np.hypot(columns - 28, rows - 24)
    assert len(rows) > 80
    assert np.abs(radius - 16).max() < 2
    assert torch.equal(canny(disc(255), channels=1), edges[:, :1])


def test_thresholds_and_pictures_in_a_batch() -> None:
    weak = disc(20)
    assert not canny(weak).any()
    assert canny(weak, 5, 20).any()
    batch = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) / 255 for p in (disc(255), weak)])
    assert torch.equal(canny(batch), torch.cat([canny(disc(255)), canny(weak)]))
    for low, high in ((-1, 5), (9, 5), (5, 256)):
        with pytest.raises(ValueError, match="expected thresholds 0 <= low <= high <= 255"):
            canny(weak, low, high)


def test_masked_pixels_are_minus_one() -> None:
    mask = Image.new("L", (64, 48))
    mask.paste(255, (0, 0, 32, 48))
    hint = masked(disc(255), mask)
    assert (hint[..., :32] == -1).all()
    assert hint[..., 32:].min() == 0
    with pytest.raises(ValueError, match="expected a mask of the picture's size, 64×48 pixels, got 8×8"):
        masked(disc(255), mask.resize((8, 8)))
