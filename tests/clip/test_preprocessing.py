"""Preprocessing against transformers' and against the steps of OpenAI's `_transform`, written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.examples import examples
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from ldm_core.clip import preprocess
from ldm_core.clip.preprocessing import scaled_size
from ldm_core.config import ImageEncoderConfig
from ldm_core.images import image_to_tensor

CONFIG = ImageEncoderConfig()
SMALL = ImageEncoderConfig(image_size=32, patch_size=16)
EXACT = 2e-6  # of values up to 2.7 in float32: the two divide by 255 and by the deviation in another order
LEVEL = 1 / 255 / min(CONFIG.std)  # one 8-bit level, as it comes out


def picture(width: int, height: int, seed: int = 0, detail: int = 3) -> Image.Image:
    """A smooth picture with edges, of colours that reach both ends."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(
        0, 256, (max(2, height // detail), max(2, width // detail), 3), dtype=np.uint8
    )
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("size", [(224, 224), (640, 480), (300, 500), (100, 60), (31, 31), (260, 1000)])
def test_pil_images_agree_with_transformers(size: tuple[int, int]) -> None:
    image = picture(*size)
    theirs = CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"]
    ours = preprocess(image, CONFIG)
    assert ours.shape == theirs.shape == (1, 3, 224, 224)
    assert float((ours - theirs).abs().max()) < EXACT


@pytest.mark.parametrize("size", [(103, 64), (64, 99), (67, 32)])
def test_half_a_pixel_goes_where_openais_code_puts_it(size: tuple[int, int]) -> None:
    """torchvision's `CenterCrop` rounds to even; transformers rounds down, a pixel aside for some."""
    image = picture(*size)
    width, height = size
    short = min(size)
    scaled = image.resize((int(32 * width / short), int(32 * height / short)), Image.Resampling.BICUBIC)
    left, top = round((scaled.width - 32) / 2.0), round((scaled.height - 32) / 2.0)
    assert max(scaled.width - 32, scaled.height - 32) % 2 == 1
    expected = image_to_tensor(scaled.crop((left, top, left + 32, top + 32)))
    mean, std = torch.tensor(SMALL.mean)[:, None, None], torch.tensor(SMALL.std)[:, None, None]
    assert torch.equal(preprocess(image, SMALL), (expected - mean) / std)


@pytest.mark.parametrize("size", [(1024, 683), (427, 640), (640, 480)])
def test_the_crop_of_transformers_on_request(size: tuple[int, int]) -> None:
    image = picture(*size)
    theirs = CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"]
    assert float((preprocess(image, CONFIG, crop="transformers") - theirs).abs().max()) < EXACT
    other = float((preprocess(image, CONFIG) - theirs).abs().max())
    assert other > 0.01 if size != (640, 480) else other < EXACT
    with pytest.raises(ValueError, match="crop must be one of openai, transformers, not 'centre'"):
        preprocess(image, CONFIG, crop="centre")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [(640, 480), (300, 500), (100, 60), (224, 224)])
def test_tensors_come_close_to_pil(size: tuple[int, int]) -> None:
    """PIL rounds to 8 bits after each of two passes, and clips in between: at most 3 levels apart, 0.4 on
    average; the same picture at the encoder's own size is the same."""
    image = picture(*size)
    difference = (preprocess(image_to_tensor(image), CONFIG) - preprocess(image, CONFIG)).abs() / LEVEL
    assert float(difference.max()) < (3 if size != (224, 224) else 1e-3)
    assert float(difference.mean()) < 0.4


def test_a_batch_is_its_images() -> None:
    images = [picture(50, 40), picture(32, 90, seed=1), image_to_tensor(picture(33, 33, seed=2))[0]]
    together = preprocess(images, SMALL)
    assert together.shape == (3, 3, 32, 32)
    for row, image in zip(together, images, strict=True):
        assert torch.equal(row, preprocess(image, SMALL)[0])


def test_modes_and_rotation() -> None:
    """Grey, palette, 16-bit and transparent pictures: as RGB on white, and upright."""
    white = preprocess(Image.new("RGB", (40, 32), "white"), SMALL)
    assert torch.equal(preprocess(Image.new("RGBA", (40, 32), (9, 9, 9, 0)), SMALL), white)
    assert torch.equal(preprocess(Image.new("L", (40, 32), 255), SMALL), white)
    assert torch.equal(preprocess(Image.new("I;16", (40, 32), 65535), SMALL), white)
    tall = picture(32, 48)
    turned = tall.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned a quarter to the right
    assert torch.equal(preprocess(turned, SMALL), preprocess(tall, SMALL))


def test_tensors_keep_type_and_gradient() -> None:
    image = torch.rand(2, 3, 40, 70, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    pixels = preprocess(image.requires_grad_(), SMALL)
    assert pixels.dtype == torch.float64
    pixels.sum().backward()
    assert image.grad is not None
    assert torch.equal(image.detach(), before)
    assert (image.grad[:, :, :, 35] != 0).all()
    assert (image.grad[:, :, :, 0] == 0).all(), "outside the square"


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([32, 224, 336]))
@examples(200)
def test_scaled_sizes(height: int, width: int, size: int) -> None:
    if max(height, width) > 64 * min(height, width):
        with pytest.raises(ValueError, match="at most 64 times the shorter"):
            scaled_size(height, width, size)
        return
    scaled = scaled_size(height, width, size)
    assert min(scaled) == size
    assert (scaled[0] <= scaled[1]) == (height <= width) or scaled[0] == scaled[1]
    assert abs(max(scaled) - size * max(height, width) / min(height, width)) <= 1


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("cat.png", "expected the image as a PIL image or a tensor, not str"),
        (None, "not NoneType"),
        ([], "at least one image, got an empty list"),
        ([picture(32, 32), 3], "not int"),
        (torch.zeros(32, 32), r"\(3, H, W\), got \(32, 32\)"),
        (torch.zeros(0, 3, 32, 32), r"got \(0, 3, 32, 32\)"),
        (torch.zeros(1, 4, 32, 32), r"got \(1, 4, 32, 32\)"),
        (torch.zeros(3, 32, 32, dtype=torch.uint8), "of torch.uint8"),
        (torch.full((3, 32, 32), 2.0), r"in \[0, 1\], got 2 to 2"),
        (torch.full((3, 32, 32), torch.nan), r"in \[0, 1\], got nan to nan"),
        (torch.zeros(3, 0, 32), "got 0 x 32"),
        (Image.new("RGB", (3000, 2)), r"got 2 x 3000 \(H x W\)"),
        (Image.new("RGB", (0, 0)), "got 0 x 0"),
    ],
)
def test_what_is_no_picture(image: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        preprocess(image, SMALL)
