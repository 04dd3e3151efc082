"""Pictures in every mode that people have, to tensors and back."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from ldm_core.images import image_to_tensor, mask_to_tensor, open_picture, tensor_to_pil
from ldm_core.noise import image_seeds, randn

RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    """What the networks are given, as 8-bit RGB."""
    (out,) = tensor_to_pil(image_to_tensor(image))
    return np.asarray(out)


def test_rgb_is_exact_there_and_back() -> None:
    tensor = image_to_tensor(RGB)
    assert tensor.shape == (1, 3, 6, 9)
    assert 0 <= tensor.min() <= tensor.max() <= 1
    assert np.array_equal(pixels(RGB), np.asarray(RGB))


def test_a_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(*_: object, **__: object) -> None:
        raise MemoryError

    data = io.BytesIO()
    RGB.save(data, "PNG")
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lack)
    with pytest.raises(MemoryError):
        open_picture(data.getvalue())


def test_grey_becomes_three_equal_channels() -> None:
    grey = RGB.convert("L")
    assert np.array_equal(pixels(grey), np.stack([np.asarray(grey)] * 3, axis=-1))
    assert np.array_equal(
        pixels(RGB.convert("1"))[..., 0], np.asarray(RGB.convert("1")).astype(np.uint8) * 255
    )


def test_sixteen_bit_grey_keeps_its_range() -> None:
    ramp = np.linspace(0, 65535, 54).reshape(6, 9).astype(np.uint16)
    image = Image.fromarray(ramp)
    assert image.mode == "I;16"
    assert np.abs(pixels(image)[..., 0].astype(float) - ramp / 257).max() <= 0.5


def test_transparency_is_laid_on_white() -> None:
    rgba = RGB.convert("RGBA")
    rgba.putalpha(0)
    assert (pixels(rgba) == 255).all()
    rgba.putalpha(255)
    assert np.array_equal(pixels(rgba), np.asarray(RGB))
    la = Image.new("LA", (4, 4), (0, 128))
    assert np.abs(pixels(la).astype(int) - 127).max() <= 1


def test_palettes_with_and_without_a_transparent_colour() -> None:
    palette = RGB.quantize(16)
    assert np.array_equal(pixels(palette), np.asarray(palette.convert("RGB")))
    palette.info["transparency"] = palette.getpixel((0, 0))
    assert (pixels(palette)[0, 0] == 255).all()


def test_cmyk() -> None:
    assert np.array_equal(pixels(RGB.convert("CMYK")), np.asarray(RGB.convert("CMYK").convert("RGB")))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    RGB.save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    assert image_to_tensor(turned).shape == (1, 3, 9, 6)
    assert np.array_equal(pixels(turned), np.rot90(np.asarray(RGB), k=-1))


def test_tensors_and_lists() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(image_to_tensor(x), x)
    assert image_to_tensor(x[0]).shape == (1, 3, 4, 4)
    assert image_to_tensor([RGB, RGB]).shape == (2, 3, 6, 9)
    for bad, message in (
        (x * 2, r"values in \[0, 1\]"),
        (x - 1, r"values in \[0, 1\]"),
        (x[:, :1], r"\(B, 3, H, W\)"),
        (torch.full((3, 2, 2), float("nan")), r"values in \[0, 1\]"),
        ([RGB, RGB.rotate(90, expand=True)], "one size"),
        ([], "PIL image or a tensor, not list"),
        (np.zeros((4, 4, 3)), "not ndarray"),
    ):
        with pytest.raises(ValueError, match=message):
            image_to_tensor(bad)


def test_masks() -> None:
    mask = Image.new("L", (4, 2), 0)
    mask.putpixel((3, 1), 255)
    tensor = mask_to_tensor(mask)
    assert tensor.shape == (1, 1, 2, 4)
    assert tensor[0, 0, 1, 3] == tensor.sum() == 1
    for mode in ("RGB", "RGBA", "LA", "1", "P"):
        assert torch.equal(mask_to_tensor(mask.convert(mode)), tensor), mode
    assert torch.equal(mask_to_tensor(tensor[0, 0]), tensor)
    transparent = Image.new("RGBA", (4, 2), (255, 255, 255, 0))
    assert mask_to_tensor(transparent).sum() == 0
    with pytest.raises(ValueError, match=r"mask of \(H, W\)"):
        mask_to_tensor(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"mask values in \[0, 1\]"):
        mask_to_tensor(torch.full((2, 2), 255.0))
    with pytest.raises(ValueError, match="masks of one size"):
        mask_to_tensor([mask, mask.resize((2, 2))])
    with pytest.raises(ValueError, match="the mask as a PIL image"):
        mask_to_tensor("mask.png")


def test_seeds() -> None:
    assert image_seeds(5, 3) == [5, 6, 7]
    assert image_seeds([9, 2], 2) == [9, 2]
    assert image_seeds(None, 4) != image_seeds(None, 4)
    for bad in (
        -1,
        2**63,
        "1",
        1.5,
        True,
        [1, "2"],
        [True, False],
        np.array([[1, 2], [3, 4]]),
        np.array(3.0),
    ):
        with pytest.raises(ValueError, match="seed"):
            image_seeds(bad, 2)  # type: ignore[arg-type]


def test_numpys_integers_are_seeds() -> None:
    for seeds in (np.int64(3), np.uint8(3), np.array([3, 4]), [np.int32(3), 4], (3, np.uint64(4))):
        found = image_seeds(seeds, 2)  # type: ignore[arg-type]
        assert found == [3, 4]
        assert {type(seed) for seed in found} == {int}
    assert image_seeds(np.uint8(255), 2) == [255, 256]  # type: ignore[arg-type]


def test_rows_of_noise_are_independent_of_the_batch() -> None:
    streams = [torch.Generator().manual_seed(s) for s in (3, 4)]
    both = randn((2, 4, 8, 8), streams)
    alone = randn((1, 4, 8, 8), [torch.Generator().manual_seed(4)])
    assert torch.equal(both[1:], alone)
    assert torch.equal(alone, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4)))
