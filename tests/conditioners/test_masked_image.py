"""LDM's inpainting condition, against its formula pixel by pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm_core.conditioners import MaskedImage

DRAWN = torch.Generator().manual_seed(0)
IMAGE = torch.rand(2, 3, 12, 16, generator=DRAWN)
MASK = torch.rand(2, 1, 12, 16, generator=DRAWN)


def encode(images: Tensor) -> Tensor:
    """Has a first stage's shapes: the mean of every 4 x 4 pixels."""
    return torch.nn.functional.avg_pool2d(images.double(), 4)


def reference(image: Tensor, mask: Tensor) -> Tensor:
    out = torch.zeros(len(image), 4, image.shape[2] // 4, image.shape[3] // 4, dtype=torch.float64)
    for b, i, j in np.ndindex(len(image), *out.shape[2:]):
        for c in range(3):
            block = [
                -1.0 if mask[b, 0, y, x] >= 0.5 else 2 * float(image[b, c, y, x]) - 1
                for y in range(4 * i, 4 * i + 4)
                for x in range(4 * j, 4 * j + 4)
            ]
            out[b, c, i, j] = sum(block) / 16
        out[b, 3, i, j] = 1 if mask[b, 0, 4 * i, 4 * j] >= 0.5 else -1
    return out


def test_the_encoding_comes_first_then_the_mask() -> None:
    conditioner = MaskedImage(encode)
    condition = conditioner((IMAGE, MASK))
    assert condition.concat is not None
    torch.testing.assert_close(condition.concat, reference(IMAGE, MASK), rtol=0, atol=1e-6)
    assert (conditioner.count((IMAGE, MASK)), conditioner.latent_size((IMAGE, MASK))) == (2, (3, 4))
    assert (conditioner.unconditional, conditioner.modules) == (None, {})
    apart = conditioner([(IMAGE[0], MASK[0]), (IMAGE[1], MASK[1, 0])])
    assert torch.equal(apart.concat, condition.concat)
    shared = conditioner((IMAGE, MASK[0]))
    torch.testing.assert_close(shared.concat, reference(IMAGE, MASK[:1].expand(2, -1, -1, -1)))


def test_what_is_hidden_has_no_influence() -> None:
    image = Image.new("RGB", (16, 12), "red")
    changed = image.copy()
    changed.paste((0, 255, 0), (4, 4, 8, 8))
    mask = Image.new("L", (16, 12))
    mask.paste(255, (4, 4, 8, 8))
    conditioner = MaskedImage(encode)
    concat = conditioner((image, mask)).concat
    assert concat is not None
    assert torch.equal(concat, conditioner((changed, mask)).concat)
    assert concat[0, :, 1, 1].tolist() == [-1, -1, -1, 1]
    assert concat[0, :, 0, 0].tolist() == [1, -1, -1, -1]


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, r"expected pair as a tuple \(image, mask\) or a list of them, got NoneType"),
        (IMAGE, "got Tensor"),
        ([], "got list"),
        ((IMAGE,), "got 1 values"),
        ([IMAGE[0], MASK[0]], r"as tuples \(image, mask\), got Tensor"),
        ((IMAGE, MASK[:, :, :8]), "of the same size, got"),
        ((IMAGE[:1], MASK), "of the same size, got"),
        ((IMAGE[:0], MASK[:1]), "of the same size, got"),
        ((IMAGE, IMAGE), "expected a mask of"),
        ((MASK, IMAGE), "expected an image of"),
        ((IMAGE * 2, MASK), r"image values in \[0, 1\]"),
        ([(IMAGE, MASK), (IMAGE[..., :8], MASK[..., :8])], "images of one size"),
        (("a.png", "b.png"), "not str"),
        ((IMAGE[..., :3], MASK[..., :3]), r"of at least 4 pixels a side, got \(2, 3, 12, 3\)"),
    ],
)
def test_what_is_no_pair(inputs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaskedImage(encode).count(inputs, "pair")
