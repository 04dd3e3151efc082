"""The similarity from five points to the template, warping, and masks, against OpenCV 5's figures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ldm_core.restoration import similarity
from ldm_core.restoration.alignment import TEMPLATE, inverse, template
from ldm_core.restoration.masks import blur, erode, parsed_mask, square_mask
from ldm_core.restoration.scripts import FACEXLIB, GPEN
from ldm_core.restoration.warping import Region, resize, warp

# Points, and OpenCV's estimateAffinePartial2D with LMEDS; in the first and third set a point is far off.
OPENCV: list[Any] = [
    (
        [[668.3, 761.3], [855.6, 833.9], [720.5, 912.9], [602.5, 962.5], [545.1, 1021.3]],
        [[0.578172, 0.225344, -364.574451], [-0.225344, 0.578172, -49.875245]],
    ),
    (
        [[208.9, 833.0], [316.1, 867.2], [260.3, 895.8], [176.9, 950.8], [288.7, 969.6]],
        [[1.053592, 0.275565, -255.926141], [-0.275565, 1.053592, -575.403815]],
    ),
    (
        [[297.3, 1089.1], [418.0, 1049.9], [363.8, 1146.9], [425.2, 1192.9], [480.9, 1208.0]],
        [[0.749663, -0.365956, 375.151001], [0.365956, 0.749663, -690.59205]],
    ),
    (
        [[1426.6, 551.3], [1653.7, 496.9], [1333.3, 910.7], [1496.4, 780.4], [1698.3, 758.4]],
        [[0.519515, -0.106524, -489.536218], [0.106524, 0.519515, -197.429707]],
    ),
    (
        [[591.0, 848.1], [675.2, 800.5], [630.3, 982.2], [593.8, 940.2], [686.5, 891.9]],
        [[0.811693, -0.225202, -58.133284], [0.225202, 0.811693, -560.241223]],
    ),
]


@pytest.mark.parametrize(("points", "expected"), OPENCV)
def test_opencv_estimates_the_same_similarity(points: Any, expected: Any) -> None:
    corners = np.array([(0, 0), (512, 0), (0, 512)])
    found, wanted = similarity(points).numpy(), np.array(expected)
    back = np.array([np.linalg.solve(wanted[:, :2], corner - wanted[:, 2]) for corner in corners])
    np.testing.assert_allclose(back @ found[:, :2].T + found[:, 2], corners, atol=0.01)


def test_a_similarity_is_found_exactly_even_if_one_point_is_off() -> None:
    angle, scale = 0.4, 0.3
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = np.array(TEMPLATE) @ linear.T + (300, -20)
    expected = torch.from_numpy(np.linalg.inv(linear))
    torch.testing.assert_close(similarity(points)[:, :2], expected, atol=1e-5, rtol=0)
    for k in range(5):
        off = points.copy()
        off[k] += (40, -60)
        torch.testing.assert_close(similarity(off)[:, :2], expected, atol=1e-5, rtol=0)


def test_other_sizes_and_the_inverse() -> None:
    torch.testing.assert_close(similarity(TEMPLATE), torch.eye(2, 3, dtype=torch.float64), atol=1e-6, rtol=0)
    matrix = similarity(torch.tensor(TEMPLATE) + 7, size=256)
    torch.testing.assert_close(matrix[:, 2], torch.full((2,), -3.5, dtype=torch.float64), atol=1e-4, rtol=0)
    both = torch.cat([matrix, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)])
    torch.testing.assert_close(inverse(matrix), torch.linalg.inv(both)[:2])


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([(1, 2)] * 5, "points that coincide"),
        (TEMPLATE[:4], r"expected five points \(5, 2\), got \(4, 2\)"),
        ([(math.nan, 1), *TEMPLATE[1:]], "expected five points within 1,000,000 pixels of the photo, got"),
        ("points", "as numbers, not str"),
        (None, "got"),
    ],
)
def test_bad_points(points: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        similarity(points)


def test_gpens_template_and_least_squares() -> None:
    """In a square of 168 pixels, ArcFace's points lie 36 to the right and 28 down; all five points count."""
    places = template(168, "gpen")
    np.testing.assert_allclose(places[0], [30.29459953 + 36, 51.69630051 + 28])
    np.testing.assert_allclose(template(512, "gpen"), places * 512 / 168)
    angle, scale = 0.3, 2.5
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    exact = (places - (5, 7)) @ np.linalg.inv(linear).T
    matrix = similarity(exact, 168, "gpen").numpy()
    np.testing.assert_allclose(matrix, np.column_stack([linear, (5, 7)]), atol=1e-4)
    off = exact + np.array([[0, 0]] * 4 + [[9, -4]])
    rows = [[(x, -y, 1, 0), (y, x, 0, 1)] for x, y in off]  # of w = a z + b in Re a, Im a, Re b, Im b
    wanted = np.linalg.lstsq(np.array(rows).reshape(10, 4), places.ravel(), rcond=None)[0]
    matrix = similarity(off, 168, "gpen").numpy()
    np.testing.assert_allclose([matrix[0, 0], matrix[1, 0], *matrix[:, 2]], wanted, atol=1e-4)
    assert np.abs(similarity(off, 168).numpy() - matrix).max() > 0.1
    with pytest.raises(ValueError, match="alignment must be one of facexlib, gpen, not 'own'"):
        similarity(TEMPLATE, alignment="own")  # type: ignore[arg-type]


def test_warping_is_bilinear_with_a_border() -> None:
    picture = torch.arange(12.0).reshape(3, 4, 1)
    shifted = torch.tensor([[1.0, 0, -0.25], [0, 1, 0.5]], dtype=torch.float64)
    found = warp(picture, shifted, Region(0, 0, 3, 4), 100.0)[..., 0]
    assert found[0, 1].item() == pytest.approx(0.75 + 2)  # x = 0.75, y = 0.5
    assert found[0, 0].item() == pytest.approx(0.25 * 100 + 0.75 * 2)
    assert found[2, 2].item() == pytest.approx(0.5 * 100 + 0.5 * 9.75)
    part = warp(picture, shifted, Region(1, 2, 3, 4), 100.0)[..., 0]
    torch.testing.assert_close(part, found[1:3, 2:4])


@pytest.mark.parametrize("method", ["bilinear", "lanczos"])
def test_enlarging_keeps_constants_and_smooth_pictures(method: Any) -> None:
    wave = torch.sin(torch.arange(32) / 5)[:, None, None].expand(32, 20, 2).contiguous()
    large = resize(wave, (64, 40), method, lambda band: band)
    expected = torch.sin(((torch.arange(64) + 0.5) / 2 - 0.5) / 5)[8:-8, None, None].expand(-1, 40, 2)
    torch.testing.assert_close(large[8:-8], expected, atol=1e-2, rtol=0)


def test_erosion_is_the_minimum_over_a_square() -> None:
    mask = torch.rand(9, 11)
    for size in (0, 1, 2, 3, 4):
        before, after = (size or 3) // 2, ((size or 3) - 1) // 2
        expected = torch.tensor(
            [
                [
                    mask[max(y - before, 0) : y + after + 1, max(x - before, 0) : x + after + 1].min()
                    for x in range(11)
                ]
                for y in range(9)
            ]
        )
        assert torch.equal(erode(mask, size), expected)


def test_blurring_mirrors_the_border() -> None:
    mask = torch.rand(5, 7)
    assert torch.equal(blur(mask, 1, None), mask)
    mirrored = torch.nn.functional.pad(mask[None], (2, 2, 2, 2), mode="reflect")[0]
    kernel = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    rows = mirrored.unfold(0, 5, 1) @ kernel
    torch.testing.assert_close(blur(mask, 5, None), rows.unfold(1, 5, 1) @ kernel)
    assert blur(torch.ones(3, 1), 101, 11.0).allclose(torch.ones(3, 1))


def test_the_mask_in_a_region_is_the_mask_in_the_whole_photo() -> None:
    to_face = similarity(np.array(TEMPLATE) * 0.1 + (30, 2))  # beyond the upper border
    region, solid, soft = square_mask(inverse(to_face), to_face, 512, (120, 140), 1)
    everywhere = Region(0, 0, 120, 140)
    whole = erode(warp(torch.ones(512, 512, 1), to_face, everywhere)[..., 0], 2)
    edge = int(float(whole.sum()) ** 0.5) // 20
    expected = blur(erode(whole, 2 * edge), 2 * edge + 1, None)
    assert edge == 2
    assert region.size[0] < 80
    torch.testing.assert_close(solid, whole[region.slices])
    torch.testing.assert_close(soft, expected[region.slices])
    expected[region.slices] = 0
    assert expected.max() == 0


def test_a_parsed_mask_has_the_scripts_classes() -> None:
    logits = torch.zeros(1, 19, 512, 512)
    logits[:, 0] = 0.5
    logits[:, 13, 150:400, 150:350] = 1
    logits[:, 17, :100] = 1  # neck
    mask = parsed_mask(torch.zeros(512, 512, 3), lambda x: (logits, x), FACEXLIB.parsed)
    assert mask[275, 250] == pytest.approx(1, abs=1e-3)
    assert mask[150, 250] == pytest.approx(0.5, abs=0.03)
    assert mask[:80].max() < 1e-3
    with_neck = parsed_mask(torch.zeros(512, 512, 3), lambda x: logits, GPEN.parsed)
    assert with_neck[60, 250] == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match=r"expected logits of \(1, 19, 512, 512\) from the parser, got"):
        parsed_mask(torch.zeros(512, 512, 3), lambda x: x, FACEXLIB.parsed)


def test_the_edge_of_a_parsed_mask_is_the_scripts() -> None:
    """facexlib blurs widely and then clears 10 pixels; GPEN clears 26 and then blurs narrowly."""
    logits = torch.zeros(1, 19, 512, 512)
    logits[:, 1] = 1
    wide, narrow = (
        parsed_mask(torch.zeros(512, 512, 3), lambda x: logits, one.parsed) for one in (FACEXLIB, GPEN)
    )
    assert wide[256, 8:12].tolist() == pytest.approx([0, 0, 1, 1], abs=1e-5)
    assert narrow[256, 25:27].mean() == pytest.approx(0.5, abs=1e-3)  # the step is between 25 and 26
    deviation = 4 * 2**0.5  # of two Gaussians
    inside = narrow[256, 26 + 6].item()
    assert inside == pytest.approx(0.5 * (1 + math.erf(6.5 / deviation / 2**0.5)), abs=2e-3)


def test_resizing_8_bits_is_in_fixed_point() -> None:
    """As OpenCV 5.0's `resize`, whose results these are: for 3 pixels to 7."""
    ramp = torch.tensor([[3, 200, 90]], dtype=torch.uint8)[..., None].expand(3, -1, -1).contiguous()

    def levels(size: tuple[int, int], method: Any) -> list[int]:
        found = resize(ramp, size, method, lambda band: (band + 0.5).floor().clamp(0, 255))
        return found[1, :, 0].int().tolist()

    assert levels((3, 7), "bilinear") == [3, 31, 116, 200, 153, 106, 90]
    assert levels((3, 7), "lanczos") == [0, 29, 132, 200, 179, 109, 68]
