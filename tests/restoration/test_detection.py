"""Detection of faces by the bundled MTCNN, against the figures of facenet-pytorch 2.6.0."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from support.faces import BOX, POINTS, SCORE, astronaut, in_mode

from ldm_core.restoration import detect
from ldm_core.restoration.face import suppress
from ldm_core.restoration.mtcnn import bundled, cascade
from ldm_core.restoration.mtcnn.cascade import find_faces


def test_one_face_where_facenet_pytorch_finds_it() -> None:
    (face,) = detect(astronaut())
    assert face.score == pytest.approx(SCORE, abs=1e-5)
    assert face.points.shape == (5, 2)
    np.testing.assert_allclose(face.points, POINTS, atol=1e-2)
    np.testing.assert_allclose(face.box, BOX, atol=1e-2)


def test_a_tensor_is_the_same_photo() -> None:
    levels = torch.from_numpy(np.array(astronaut())).permute(2, 0, 1)
    (face,) = detect(levels.float() / 255)
    np.testing.assert_allclose(face.points, POINTS, atol=1e-2)


def test_bands_of_a_large_photo_give_the_same_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.from_numpy(np.array(astronaut().resize((161, 203))))
    whole = find_faces(pixels, bundled())
    monkeypatch.setattr(cascade, "BAND", 7)
    banded = find_faces(pixels, bundled())
    assert len(whole) == len(banded) == 1
    np.testing.assert_allclose(whole[0].points, banded[0].points, atol=1e-3)


def test_scaling_down_is_the_mean_of_areas() -> None:
    pixels = torch.randint(256, (37, 53, 3), dtype=torch.uint8)
    ours = cascade.area_band(pixels, range(3, 11), 14, 29)
    theirs = torch.nn.functional.interpolate(pixels.permute(2, 0, 1)[None].float(), (14, 29), mode="area")
    torch.testing.assert_close(ours, theirs[:, :, 3:11])


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (19, 19), (20, 20)])
def test_photos_too_small_for_a_face_have_none(size: tuple[int, int]) -> None:
    assert detect(Image.new("RGB", size)) == []


def test_noise_has_no_face() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    assert detect(Image.fromarray(noise)) == []


@pytest.mark.one_in(3)
@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "I;16", "P", "CMYK"])
def test_photos_of_other_modes(mode: str) -> None:
    photo = in_mode(astronaut(), mode)
    (face,) = detect(photo)
    np.testing.assert_allclose(face.points, POINTS, atol=3)  # a palette has 256 colours


@pytest.mark.one_in(2)
@pytest.mark.parametrize("box", [(80, 60, 224, 224), (0, 0, 150, 224), (0, 85, 224, 224), (100, 0, 224, 224)])
def test_a_face_at_the_border(box: tuple[int, int, int, int]) -> None:
    """Half of it may lie beyond the border."""
    (face,) = detect(astronaut().crop(box))
    np.testing.assert_allclose(face.points, np.array(POINTS) - box[:2], atol=4)


@pytest.mark.parametrize(
    ("photo", "smallest", "message"),
    [
        ("photo.png", 20, "expected the image as a PIL image or a tensor, not str"),
        (torch.zeros(2, 3, 32, 32), 20, "expected one photo, got 2"),
        (torch.zeros(3, 32, 32), 5, "smallest must be a number of at least 12 pixels, not 5"),
        (torch.zeros(3, 32, 32), math.nan, "smallest must be a number of at least 12 pixels, not nan"),
    ],
)
def test_bad_input(photo: object, smallest: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        detect(photo, smallest)


def test_suppression() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10], [2, 2, 6, 6]], np.float32)
    scores = np.array([0.8, 0.9, 0.7, 0.6], np.float32)
    assert suppress(boxes, scores, 0.5) == [1, 2, 3]
    assert suppress(boxes, scores, 0.95) == [1, 0, 2, 3]
    assert suppress(boxes, scores, 0.5, of_smaller=True) == [1, 2]
    assert suppress(boxes[:0], scores[:0], 0.5) == []


@pytest.mark.slow  # a hundred photos
def test_rotated_scaled_and_darkened_copies(capsys: pytest.CaptureFixture[str]) -> None:
    """At least these shares are found, and the mean error of the points as a part of the eyes' distance."""
    rows = {
        "rotated up to 15°": (1.0, 0.04),
        "rotated up to 40°": (0.9, 0.06),
        "scaled to 0.4 to 1.5": (1.0, 0.04),
        "darkened to 0.1 to 0.5": (1.0, 0.05),
        "all of these": (0.7, 0.08),
    }
    random = np.random.default_rng(0)
    lines = []
    for name, (least, most) in rows.items():
        found, errors = 0, []
        for _ in range(20):
            everything = name.startswith("all")
            turn = {"15": 15.0, "40": 40.0}.get(name[14:16], 40.0 if everything else 0.0)
            degrees = random.uniform(-turn, turn)
            scale = random.uniform(0.4, 1.5) if everything or "scaled" in name else 1.0
            light = random.uniform(0.1, 0.5) if everything or "darkened" in name else 1.0
            photo, points = _copy(degrees, scale, light)
            faces = detect(photo)
            if faces:
                found += 1
                error = np.linalg.norm(faces[0].points.numpy() - points, axis=1).mean()
                errors.append(error / np.linalg.norm(points[0] - points[1]))
        lines.append(f"{name:24} found {found:2}/20, error {np.mean(errors):.3f}, worst {max(errors):.3f}")
        assert found >= least * 20, lines
        assert np.mean(errors) <= most, lines
    with capsys.disabled():
        print("\n" + "\n".join(lines))


def _copy(degrees: float, scale: float, light: float) -> tuple[Image.Image, np.ndarray]:
    """The photo rotated about its centre, scaled and darkened, and the points of its face."""
    photo = astronaut()
    side = round(photo.width * scale)
    turned = photo.rotate(degrees, Image.Resampling.BICUBIC, fillcolor="grey").resize((side, side))
    angle, centre = math.radians(degrees), (photo.width - 1) / 2
    rotation = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    points = (np.array(POINTS) - centre) @ rotation.T + centre
    return ImageEnhance.Brightness(turned).enhance(light), points * (side / photo.width)
