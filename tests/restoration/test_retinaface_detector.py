"""RetinaFace as a detector: its rules on outputs that are known, and its place in `detect` and `restore`."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from restoration.small import SMALL, random_network
from support.faces import POINTS, astronaut
from torch import Tensor

from ldm_core.restoration import FaceDetector, RetinaFace, RetinaFaceConfig, detect, restore
from ldm_core.restoration.retinaface.anchors import anchors
from ldm_core.restoration.warping import resize

CONFIG = RetinaFaceConfig("mobilenet", 4, 8)


class Fixed(RetinaFace):
    """Finds what it is told: (anchor, score) pairs, with boxes and points at the anchors' centres."""

    def __init__(self, found: dict[int, float], offsets: dict[int, Tensor] | None = None) -> None:
        super().__init__(CONFIG)
        self.found, self.offsets = found, offsets or {}
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.seen.append(x)
        count = len(anchors(*x.shape[2:]))
        boxes, logits, points = (torch.zeros(1, count, n) for n in (4, 2, 10))
        logits[..., 0] = 20
        for place, score in self.found.items():
            logits[0, place] = torch.tensor([1 - score, score]).log()
            points[0, place] = self.offsets.get(place, torch.zeros(10))
        return boxes, logits, points


def where(height: int, width: int, x: float, y: float, side: int) -> int:
    """The index of an anchor."""
    distances = (anchors(height, width) - torch.tensor([x, y, side])).abs().sum(dim=1)
    assert distances.min() == 0
    return int(distances.argmin())


def test_scores_above_the_threshold_and_no_overlap_above_04() -> None:
    """Squares of 64 pixels: 16 apart, the overlap is 0.6, and 48 apart it is 0.14."""
    a, b, c, d = (where(160, 320, 24 + 16 * step, 40, 64) for step in (0, 1, 4, 8))
    network = Fixed({a: 0.85, b: 0.95, c: 0.9, d: 0.8})
    faces = FaceDetector(network, side=None)(Image.new("RGB", (320, 160)))
    assert [round(face.score, 4) for face in faces] == [0.95, 0.9]
    assert faces[0].box.tolist() == [40 - 32, 40 - 32, 40 + 32, 40 + 32]
    assert faces[1].points.tolist() == [[88, 40]] * 5
    assert len(FaceDetector(network, 0.7, side=None)(Image.new("RGB", (320, 160)))) == 3


@pytest.mark.parametrize(
    ("size", "side", "seen"),
    [((90, 60), 30, (60, 90)), ((60, 90), 120, (180, 120)), ((61, 90), 120, (177, 120))],
)
def test_small_photos_are_enlarged_and_boxes_are_scaled_back(
    size: tuple[int, int], side: int, seen: tuple[int, int]
) -> None:
    """CodeFormer's script never shrinks a photo, and divides by the scale, not by a ratio of sizes."""
    photo = astronaut().resize(size)
    network = Fixed({where(*seen, 12, 12, 16): 0.99})
    (face,) = FaceDetector(network, side=side)(photo)
    (x,) = network.seen
    assert x.shape[2:] == seen
    scale = max(1, side / min(size))
    np.testing.assert_allclose(face.box, np.array([4, 4, 20, 20]) / scale, rtol=1e-6)
    np.testing.assert_allclose(face.points[2], np.array([12, 12]) / scale, rtol=1e-6)
    pixels = torch.from_numpy(np.array(photo))
    wanted = resize(pixels, seen, "bilinear", lambda band: (band + 0.5).floor()).permute(2, 0, 1)[None]
    torch.testing.assert_close(x, wanted.float(), atol=1e-3, rtol=0)


def located() -> Fixed:
    """A network that finds the astronaut's face at the photo's own size, by offsets from an anchor."""
    place = where(224, 224, 120, 120, 64)
    offsets = torch.tensor((np.array(POINTS) - 120) / (0.1 * 64), dtype=torch.float32).flatten()
    return Fixed({place: 0.95}, {place: offsets})


def test_detect_and_restore_take_it_in_every_form() -> None:
    network = located()
    detector = FaceDetector(network, side=None)
    (face,) = detect(astronaut(), detector=detector)
    np.testing.assert_allclose(face.points, POINTS, atol=1e-3)

    def darker(x: Tensor) -> Tensor:
        return x * 0.5 - 0.4

    known = restore(astronaut(), darker, detector=lambda _: (np.zeros((1, 4)), face.points[None]))
    found = restore(astronaut(), darker, detector=detector)
    assert np.array_equal(np.asarray(found), np.asarray(known))
    for form in (network, SimpleNamespace(kind="retinaface", network=network)):
        with pytest.warns(UserWarning, match="no face"):  # the score is below this threshold
            restore(astronaut(), darker, detector=form, threshold=0.99)
    assert network.seen[-1].shape[2:] == (640, 640)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("case", list(product(["mobilenet", "resnet"], [(1, 1), (70, 45)])))
def test_random_weights_on_any_size(case: tuple[str, tuple[int, int]]) -> None:
    name, size = case
    network = random_network(SMALL[name], torch.float32)
    for face in FaceDetector(network, 0.4, side=64)(Image.new("RGB", size)):
        assert face.box.isfinite().all()
        assert 0.4 < face.score <= 1


def test_a_long_photo_is_bounded() -> None:
    for size in ((2, 100_000), (3000, 4000)):
        height, width, scale = FaceDetector(Fixed({}))._size(*size)
        assert 0.9 * 2**23 < height * width <= 2**23
        assert int(size[1] * scale) == width
        assert FaceDetector(Fixed({}), side=None)._size(*size) == (*size, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": torch.nn.Identity()}, "expected a RetinaFace as the network, not Identity"),
        ({"threshold": 2}, r"threshold must be a number in \[0, 1\], not 2"),
        ({"side": 3}, r"side must be a whole number in 16\.\.4096, or None, not 3"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaceDetector(**({"network": Fixed({})} | options))
