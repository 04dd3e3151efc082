"""From photo to photo: which pixels change, and which kinds of photos come back as they were."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from restoration.small import GFPGAN, random_network
from support.faces import POINTS, astronaut, crowd, in_mode
from torch import Tensor, nn

from ldm_core.restoration import CodeFormerConfig, Face, detect, restore
from ldm_core.restoration.alignment import inverse, similarity
from ldm_core.restoration.face_network import FaceNetwork
from ldm_core.restoration.masks import square_mask
from ldm_core.restoration.published import COLORIZATION, INPAINTING
from ldm_core.restoration.restorer import SCRIPTS

BOXES = np.zeros((1, 4))


def known(photo: Image.Image) -> Any:
    """The detector of the astronaut's face."""
    return BOXES, np.array(POINTS)[None]


def identity(x: Tensor) -> Tensor:
    return x


def darker(x: Tensor) -> Tensor:
    return x * 0.5 - 0.4


class Darker(nn.Module):
    """The same for faces of 64 pixels, which take less time."""

    config = SimpleNamespace(size=64)

    def forward(self, x: Tensor) -> Tensor:
        return darker(x)


def levels(photo: Image.Image) -> np.ndarray:
    return np.asarray(photo).astype(int)


def test_the_identity_returns_the_photo() -> None:
    photo = astronaut()
    assert np.array_equal(levels(restore(photo, identity)), levels(photo))
    assert np.array_equal(levels(restore(photo, lambda x: (x, "logits"), detector=known)), levels(photo))


def test_only_pixels_within_the_mask_change() -> None:
    photo = astronaut()
    result = restore(photo, darker, detector=known)
    to_face = similarity(POINTS)
    region, _, soft = square_mask(inverse(to_face), to_face, 512, photo.size, 1)
    mask = np.zeros(photo.size)
    mask[region.slices] = soft.numpy()
    changed = (levels(result) != levels(photo)).any(axis=2)
    assert not changed[mask == 0].any()
    assert changed[mask > 0.99].mean() > 0.9
    expected = levels(photo) * 0.5 + 0.1 * 127.5
    assert np.abs(levels(result) - expected)[mask > 0.99].mean() < 3  # it is sampled twice


def test_the_same_seed_gives_the_same_result_and_each_face_its_own() -> None:
    seen: list[int] = []

    class Noisy(nn.Module):
        config = SimpleNamespace(size=64)

        def forward(self, x: Tensor, *, seed: int = 0) -> Tensor:
            seen.append(seed)
            return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) * 0.1

    photo, points = crowd(2, 1, 112)
    first, again, other = (
        restore(photo, Noisy(), detector=lambda _: (np.zeros((2, 4)), points), seed=seed)
        for seed in (4, 4, 5)
    )
    assert np.array_equal(levels(first), levels(again))
    assert not np.array_equal(levels(first), levels(other))
    assert seen == [4, 5, 4, 5, 5, 6]


def test_fresh_noise_on_request() -> None:
    """As the original scripts have it; the results differ, and a seed of None reaches the network."""
    network = random_network(GFPGAN, torch.float32)
    first, second = (levels(restore(astronaut(), network, detector=known, seed=None)) for _ in range(2))
    assert not np.array_equal(first, second)
    first, second = (levels(restore(astronaut(), network, detector=known)) for _ in range(2))
    assert np.array_equal(first, second)


def by_its_script(config: Any) -> tuple[SimpleNamespace, list[Any]]:
    """A published file's restorer, whose network makes faces red, and what it was called with."""
    seen: list[Any] = []

    def network(x: Tensor, w: float = 0.5, adain: bool = True) -> Tensor:
        seen.append((w, adain))
        return torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand_as(x)

    options = SCRIPTS.get(config, {})
    return SimpleNamespace(network=network, kind="codeformer", config=config, options=options), seen


def test_the_file_for_inpainting_fills_white_pixels_alone() -> None:
    face = astronaut().resize((512, 512)).point(lambda level: min(level, 254))
    face.paste((255, 255, 255), (100, 120, 180, 200))
    restorer, seen = by_its_script(INPAINTING)
    result = levels(restore(face, restorer, aligned=True))
    assert seen == [(1.0, False)]
    expected = levels(face)
    expected[120:200, 100:180] = (255, 0, 0)
    assert np.array_equal(result, expected)
    restore(face, restorer, 0.5, aligned=True)
    assert seen[1] == (0.5, False)
    grey = face.convert("L").convert("RGB")
    result = levels(restore(grey, restorer, aligned=True))
    expected = levels(grey)
    expected[120:200, 100:180] = (255, 0, 0)
    assert np.array_equal(result, expected), "a grey face is not matched to a crop with white pixels"


def test_the_file_for_colorization_colours_grey_photos() -> None:
    restorer, seen = by_its_script(COLORIZATION)
    grey = astronaut().convert("L")
    coloured = restore(grey, restorer, detector=known)
    assert seen == [(0.0, True)]
    assert coloured.mode == "RGB"
    assert np.ptp(levels(coloured), axis=2).max() == 255
    assert restore(grey, restorer, detector=known, keep_grey=True).mode == "L"
    usual, _ = by_its_script(CodeFormerConfig())
    assert restore(grey, usual, detector=known).mode == "L"
    for kind in ("gfpgan", "gpen"):  # their scripts keep the network's colours
        usual.kind, usual.config = kind, None
        assert np.ptp(levels(restore(grey, usual, detector=known)), axis=2).max() == 255


def test_a_gpen_gets_faces_as_its_script_aligns_them() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor) -> Tensor:
        seen.append(x)
        return x - 0.9 / 127.5  # truncated, a whole level

    gpen = SimpleNamespace(network=network, kind="gpen")
    photo = astronaut()
    points = np.array(POINTS) - (60, 0)  # the face reaches over the left border
    restore(photo, gpen, detector=lambda _: (BOXES, points[None]))
    restore(photo, network, detector=lambda _: (BOXES, points[None]), alignment="gpen")
    assert torch.equal(*seen)
    crop = ((seen[0][0] + 1) * 127.5).round()
    assert (crop[:, 300, :40] == 0).all()  # black
    to_face = similarity(points, 512, "gpen").numpy()
    place = np.array([100.0, 100.0])
    x, y = (to_face[:, :2] @ place + to_face[:, 2]).round().astype(int)
    assert np.abs(crop[:, y, x].numpy() - levels(photo)[100, 100]).max() < 8
    restored = FaceNetwork.of(gpen, None, None)(crop.permute(1, 2, 0))
    assert torch.equal(restored, (crop.permute(1, 2, 0) - 1).clamp(0))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", [(99, True), (0, False), (100, False)])
def test_gpen_smooths_small_faces(case: tuple[int, bool]) -> None:
    """With 1, 2, 1 along each axis; a box without an area says nothing."""
    side, smooth = case
    spots = torch.zeros(1, 3, 512, 512)
    spots[..., ::2, ::2] = 1
    gpen = SimpleNamespace(network=lambda x: spots, kind="gpen")
    boxes = np.array([[0, 0, side, 300]])
    result = restore(
        astronaut().resize((512, 512)), gpen, detector=lambda _: (boxes, np.array(POINTS)[None] * 2)
    )
    contrast = levels(result)[230:250, 220:240].std()
    assert contrast < 12 if smooth else contrast > 12


def test_gpen_parses_faces_before_they_are_smoothed_and_rounds() -> None:
    """Its result is round(m face + (1 - m) photo); the others' is truncated."""
    seen: list[Tensor] = []

    def parser(x: Tensor) -> Tensor:
        seen.append(x)
        logits = torch.zeros(1, 19, 512, 512)
        logits[:, 1] = 1
        return logits

    spots = torch.zeros(1, 3, 512, 512)
    spots[..., ::2, ::2] = 1
    gpen = SimpleNamespace(network=lambda x: spots, kind="gpen")
    photo = astronaut().resize((512, 512))
    detector = lambda _: (np.array([[0, 0, 50, 300]]), np.array(POINTS)[None] * 2)  # noqa: E731
    restore(photo, gpen, detector=detector, mask="parsing", parser=parser)
    assert torch.equal(seen[0] > 0.5, spots > 0.5)

    white, points = Image.new("RGB", (1000, 1000), "white"), np.array(POINTS) * 2 + 250
    darker = SimpleNamespace(network=lambda x: x - 1.5 / 255, kind="gpen")
    result = levels(
        restore(white, darker, detector=lambda _: (BOXES, points[None]), mask="parsing", parser=parser)
    )
    assert set(np.unique(result)) == {254, 255}
    side = (512 - 2 * 26) / float(torch.linalg.det(similarity(points, 512, "gpen")[:, :2])) ** 0.5
    changed = (result == 254).all(axis=2).sum()  # where the mask is above a half
    assert changed == pytest.approx(side**2, rel=0.01)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("corner", [(-90, 0), (90, 0), (0, -90), (0, 90)])
def test_a_face_at_the_border(corner: tuple[int, int]) -> None:
    """What lies beyond the border does not change what lies inside it."""
    photo, points = astronaut(), np.array(POINTS)
    wide = Image.new("RGB", (424, 424))
    wide.paste(photo, (100, 100))
    x, y = corner
    part = wide.crop((100 - x, 100 - y, 324 - x, 324 - y))
    result = restore(part, Darker(), detector=lambda _: (BOXES, points[None] + corner))
    changed = (levels(result) != levels(part)).any(axis=2)
    nose = (points[2] + corner).clip(2, 221).astype(int)
    assert result.size == part.size
    assert changed[nose[1], nose[0]] or not (0 <= points[2, 0] + x < 224 and 0 <= points[2, 1] + y < 224)
    assert changed.any()


def test_codeformers_fidelity_reaches_the_network() -> None:
    seen: list[Any] = []

    def network(x: Tensor, w: float = 0.5, adain: bool = True) -> Tensor:
        seen.append((w, adain))
        return x

    restorer = SimpleNamespace(network=network, kind="codeformer", options={"adain": False})
    restore(astronaut(), restorer, 0.25, detector=known)
    restore(astronaut(), restorer, detector=known)
    assert seen == [(0.25, False), (0.5, False)]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "I;16"])
@pytest.mark.parametrize("upscale", [1, 2])
def test_the_mode_is_kept(mode: str, upscale: int) -> None:
    photo = in_mode(astronaut(), mode)
    result = restore(photo, Darker(), upscale=upscale, detector=known)
    assert result.mode == mode
    assert result.size == (224 * upscale, 224 * upscale)
    if upscale == 1:
        changed = levels(result) != levels(photo)
        changed = changed if changed.ndim == 2 else changed.any(axis=2)
        assert 0.1 < changed.mean() < 0.9
        if mode in ("LA", "RGBA"):
            assert np.array_equal(levels(result)[..., -1], levels(photo)[..., -1])


def test_16_bits_are_not_rounded_to_8() -> None:
    values = np.array(astronaut().convert("L")).astype(np.uint16) * 257 + 77
    result = levels(restore(Image.fromarray(values), Darker(), detector=known))
    assert (result[:5] == values[:5]).all()
    assert len(np.unique(result % 257)) > 100


def test_the_orientation_is_applied_and_the_profile_is_kept(tmp_path: Any) -> None:
    photo = astronaut()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees
    exif[0x010F] = "camera"
    photo.rotate(90).save(tmp_path / "photo.png", exif=exif, icc_profile=b"profile")
    with Image.open(tmp_path / "photo.png") as turned:
        result = restore(turned, Darker(), detector=known)
    upright = restore(photo, Darker(), detector=known)
    assert np.array_equal(levels(result), levels(upright))
    assert result.info["icc_profile"] == b"profile"
    assert result.getexif().get(0x0112) is None
    assert result.getexif()[0x010F] == "camera"


def test_tensors_stay_tensors() -> None:
    photo = torch.from_numpy(levels(astronaut())).permute(2, 0, 1).float() / 255
    before = photo.clone()
    result = restore(photo, Darker(), detector=known)
    assert result.shape == photo.shape
    assert torch.equal(photo, before)
    expected = levels(restore(astronaut(), Darker(), detector=known)) / 255
    np.testing.assert_allclose(result.permute(1, 2, 0), expected, atol=1.01 / 255)
    assert restore(photo[None], Darker(), upscale=2, detector=known).shape == (1, 3, 448, 448)


def test_grey_photos_stay_grey() -> None:
    """A colour that the network adds is removed, and the face has the contrast of the photo."""
    photo = astronaut().convert("L")

    def coloured(x: Tensor) -> Tensor:
        return x * 0.7 + torch.tensor([0.3, 0.0, -0.3])[:, None, None]

    for mode in ("L", "RGB"):
        result = levels(restore(photo.convert(mode), coloured, detector=known))
        assert mode == "L" or (np.ptp(result, axis=2) == 0).all()
        difference = result - levels(photo.convert(mode))
        assert np.abs(difference).mean() < 2  # but for sampling, the same photo
    kept = levels(restore(photo, coloured, detector=known, keep_grey=False))
    assert np.ptp(kept, axis=2).max() > 50


@pytest.mark.one_in(2)
@pytest.mark.parametrize("mask", ["both", "parsing"])
def test_a_parser_limits_the_mask(mask: Any) -> None:
    logits = torch.zeros(1, 19, 512, 512)
    logits[:, 1, 200:350, 180:330] = 1
    photo = astronaut()
    parser = SimpleNamespace(network=lambda x: (logits, x), kind="parsenet")
    result = restore(photo, Darker(), detector=known, mask=mask, parser=parser)
    square = restore(photo, Darker(), detector=known)
    inner, outer = ((levels(r) != levels(photo)).any(axis=2) for r in (result, square))
    assert 0.05 < inner.mean() < outer.mean() * 0.6


def test_an_aligned_face() -> None:
    face = astronaut().resize((512, 512))
    expected = np.floor(((levels(face) / 127.5 - 1) * 0.5 - 0.4).clip(-1, 1) * 127.5 + 128)
    result = restore(face, darker, aligned=True)
    np.testing.assert_allclose(levels(result), expected, atol=1)
    assert restore(astronaut(), darker, aligned=True).size == (512, 512)
    with pytest.raises(ValueError, match="expected an aligned face as a square, got 224 x 100 pixels"):
        restore(astronaut().crop((0, 0, 224, 100)), darker, aligned=True)
    with pytest.raises(ValueError, match="upscale must be 1, not 2"):
        restore(face, darker, upscale=2, aligned=True)


def test_another_size_of_faces() -> None:
    network = nn.Conv2d(3, 3, 1)
    network.config = SimpleNamespace(size=64)
    assert restore(astronaut(), network, detector=known).size == (224, 224)


def test_without_a_face_the_photo_comes_back_with_a_warning() -> None:
    for size in ((1, 1), (40, 30)):
        photo = Image.new("RGB", size, "red")
        with pytest.warns(UserWarning, match="no face was found in the photo"):
            result = restore(photo, darker)
        assert np.array_equal(levels(result), levels(photo))


@pytest.mark.slow  # fifty crops of 512 x 512
def test_fifty_faces() -> None:
    photo, points = crowd(10, 5, 40)
    result = restore(photo, Darker(), detector=lambda _: (np.zeros((50, 4)), points))
    changed = (levels(result) != levels(photo)).any(axis=2)
    assert all(changed[int(y), int(x)] for x, y in points[:, 2])


def test_faces_that_are_too_small_unlikely_or_outside_are_left_alone() -> None:
    photo = astronaut()
    points = np.array(POINTS)
    for found in (
        (BOXES, (points * 0.1)[None]),
        (np.array([[0, 0, 1, 1, 0.89]]), points[None]),
        (BOXES, points[None] + 5000),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = restore(photo, Darker(), detector=lambda _, found=found: found)
        assert np.array_equal(levels(result), levels(photo))


def test_detect_itself_can_be_the_detector() -> None:
    by_default = restore(astronaut(), Darker())
    assert np.array_equal(levels(restore(astronaut(), Darker(), detector=detect)), levels(by_default))


FACE = Face(torch.zeros(4), 1.0, torch.zeros(5, 2))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, r"the detector must return \(boxes \(N, 4\), points \(N, 5, 2\)\), not NoneType"),
        ("ab", "the detector must return its boxes as numbers, not str"),
        ((BOXES, np.zeros((1, 5, 3))), r"not \(1, 4\) and \(1, 5, 3\)"),
        ((np.zeros((2, 4)), np.zeros((1, 5, 2))), r"not \(2, 4\) and \(1, 5, 2\)"),
        ((BOXES, np.full((1, 5, 2), np.nan)), "the detector returned points with NaN, infinity or more"),
        ((BOXES, np.full((1, 5, 2), 1e30)), "the detector returned points with NaN, infinity or more"),
        ((BOXES, [[(0, 0), (9, 0)]]), r"not \(1, 4\) and \(1, 2, 2\)"),
        ((BOXES, [object()]), "the detector must return its points as numbers, not list"),
    ],
)
def test_a_detector_that_returns_nonsense(found: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        restore(astronaut(), darker, detector=lambda _: found)


def wrong(options: dict[str, Any]) -> Callable[[], Any]:
    return lambda: restore(**({"photo": astronaut(), "restorer": darker, "detector": known} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fidelity": 1.5}, r"fidelity must be a number in \[0, 1\], not 1.5"),
        ({"fidelity": "high"}, "fidelity must be a number"),
        ({"fidelity": float("nan")}, "fidelity must be a number"),
        ({"upscale": 0}, r"upscale must be a whole number in 1\.\.8, not 0"),
        ({"upscale": 1.5}, "upscale must be a whole number"),
        ({"mask": "round"}, "mask must be one of square, parsing, both, not 'round'"),
        ({"mask": "parsing"}, "mask 'parsing' needs a parser"),
        ({"parser": identity}, "mask 'square' takes no parser"),
        ({"background": "nearest"}, "background must be one of lanczos, bilinear"),
        ({"seed": "1"}, "seed must be a whole number"),
        ({"alignment": "own"}, "alignment must be one of facexlib, gpen, not 'own'"),
        ({"photo": "photo.jpg"}, "expected the photo as a PIL image or a tensor, not str"),
        ({"photo": torch.zeros(2, 3, 8, 8)}, "expected one photo"),
        ({"photo": torch.full((3, 8, 8), 2.0)}, r"expected image values in \[0, 1\]"),
        ({"detector": "mtcnn"}, "expected the detector as a RetinaFace or a callable, not str"),
        ({"restorer": SimpleNamespace(kind="parsenet", network=identity)}, "got 'parsenet'"),
        ({"restorer": 3}, "expected a network that restores faces, got 'int'"),
        ({"restorer": lambda x: x[..., :5]}, r"expected a face of \(1, 3, 512, 512\) from the network"),
        ({"restorer": lambda x: x * float("nan")}, "the network returned NaN or infinity"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong(options)()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_an_aligned_face_keeps_its_alpha(mode: str) -> None:
    photo = in_mode(astronaut(), mode).resize((512, 512))
    result = restore(photo, lambda x: 0.9 * x, aligned=True)
    assert result.mode == mode
    assert np.array_equal(np.asarray(result)[..., -1], np.asarray(photo)[..., -1])
