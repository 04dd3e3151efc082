"""Small pictures for super-resolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from ldm_core.conditioners import LowResolution

SMALL = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def test_pictures_are_scaled_to_minus_one_to_one() -> None:
    conditioner = LowResolution()
    condition = conditioner(SMALL)
    assert condition.concat is not None
    assert torch.equal(condition.concat, 2 * SMALL - 1)
    assert condition.context is condition.vector is None
    assert (conditioner.count(SMALL), conditioner.latent_size(SMALL)) == (2, (8, 12))
    pil = Image.new("RGB", (12, 8), (0, 51, 255))
    expected = torch.tensor([-1, -0.6, 1])[None, :, None, None].expand(1, 3, 8, 12)
    torch.testing.assert_close(conditioner(pil).concat, expected)
    assert (conditioner.count([pil, pil, pil]), conditioner.latent_size(pil)) == (3, (8, 12))
    assert (conditioner.unconditional, conditioner.modules) == (None, {})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, "small: expected the image as a PIL image or a tensor, not NoneType"),
        (SMALL * 2 - 1, r"small: expected image values in \[0, 1\], got -"),
        (SMALL[:, :1], r"got \(2, 1, 8, 12\)"),
        ([SMALL, SMALL[:, :, :4]], "images of one size"),
        (SMALL[:0], r"image with pixels, got \(0, 3, 8, 12\)"),
        ("a cat", "not str"),
    ],
)
def test_what_is_no_picture(inputs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LowResolution().count(inputs, "small")
    with pytest.raises(ValueError):
        LowResolution()(inputs)
