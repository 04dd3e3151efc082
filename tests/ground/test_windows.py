"""Windows against loops over the pixels in float64, as CompVis's code weights them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldm_core.windows import Place, Windows


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def pyramid(i: int, j: int, rows: int, columns: int) -> float:
    """The weight of a pixel of a window, or of a window of the grid, as CompVis computes it."""
    y, x = i / (rows - 1), j / (columns - 1)
    return min(max(min(y, 1 - y, x, 1 - x), 0.01), 0.5)


def by_loops(function: Any, x: Tensor, size: int, stride: int, f: int = 1, tie: bool = False) -> Tensor:
    """CompVis's windowed evaluation: sizes must satisfy (h - size) mod stride = 0."""
    h, w = x.shape[2:]
    down, right = (h - size) // stride + 1, (w - size) // stride + 1
    total = weights = None
    for row in range(down):
        for column in range(right):
            top, left = row * stride, column * stride
            out = function(x[:, :, top : top + size, left : left + size])
            if total is None:
                total, weights = torch.zeros(*out.shape[:2], h * f, w * f).double(), torch.zeros(h * f, w * f)
                weights = weights.double()
            for i in range(size * f):
                for j in range(size * f):
                    share = pyramid(i, j, size * f, size * f)
                    share *= pyramid(row, column, down, right) if tie else 1
                    total[:, :, top * f + i, left * f + j] += share * out[:, :, i, j]
                    weights[top * f + i, left * f + j] += share
    assert total is not None
    return total / weights


def own_mean(part: Tensor) -> Tensor:
    """A function of a whole window, as group norm makes networks."""
    return part * part.mean(dim=(1, 2, 3), keepdim=True) + part.flip(2)


def enlarged(part: Tensor) -> Tensor:
    return own_mean(part).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def one(function: Any) -> Any:
    return lambda part, places: function(part)


@pytest.mark.parametrize("tie", [False, True])
def test_the_original_sizes_give_the_original_result(tie: bool) -> None:
    x, windows = randn(2, 3, 8, 12), Windows(4, 2, tie_breaker=tie)
    assert [(p.top, p.left) for p in windows.places(8, 12)] == [
        (2 * row, 2 * column) for row in range(3) for column in range(5)
    ]
    ours = windows.apply(one(own_mean), x)
    torch.testing.assert_close(ours, by_loops(own_mean, x, 4, 2, tie=tie), rtol=1e-12, atol=1e-12)


def test_weights_are_those_of_the_result() -> None:
    x, windows = randn(1, 2, 8, 6), Windows(4, 2)
    ours = windows.apply(one(enlarged), x, scale=2)
    torch.testing.assert_close(ours, by_loops(enlarged, x, 4, 2, f=2), rtol=1e-12, atol=1e-12)

    def smaller(part: Tensor) -> Tensor:
        return own_mean(part)[:, :, ::2, ::2]

    ours = windows.times(2).apply(one(smaller), enlarged(x), scale=Fraction(1, 2))
    expected = by_loops(lambda part: smaller(enlarged(part)), x, 4, 2)
    assert ours.shape == expected.shape
    for place in windows.times(2).places(16, 12):
        assert windows.weight(place.scaled(Fraction(1, 2))).shape == (4, 4)


def test_the_last_window_is_moved_to_the_edge() -> None:
    places = Windows((4, 5), (3, 2)).places(9, 8)
    assert [(p.top, p.left) for p in places] == [(t, c) for t in (0, 3, 5) for c in (0, 2, 3)]
    assert {(p.height, p.width) for p in places} == {(4, 5)}
    assert places[-1].box == (3 / 8, 5 / 9, 5 / 8, 4 / 9)


def test_equal_weights_are_the_plain_mean() -> None:
    x = randn(1, 1, 4, 6)
    ours = Windows(4, 2, weights="equal").apply(one(own_mean), x)
    left, right = own_mean(x[..., :4]), own_mean(x[..., 2:])
    expected = torch.cat([left[..., :2], (left[..., 2:] + right[..., :2]) / 2, right[..., 2:]], dim=3)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("weights", ["pyramid", "equal"])
def test_a_panorama_has_no_first_column(weights: Any) -> None:
    """Turning the picture by a stride turns the result, and no pixel is at an edge."""
    windows = Windows(4, 2, weights=weights, wrap=True)
    x = randn(2, 3, 4, 10)
    ours = windows.apply(one(own_mean), x)
    for turn in (2, 4, 8):
        torch.testing.assert_close(windows.apply(one(own_mean), x.roll(turn, 3)), ours.roll(turn, 3))
    expected = own_mean(x.roll(-8, 3)[..., :4])  # the columns 8, 9, 0, 1
    assert torch.equal(windows.places(4, 10)[-1].index()[2], torch.tensor([8, 9, 0, 1]))
    if weights == "equal":
        other = own_mean(x[..., :4])
        torch.testing.assert_close(ours[..., 0], (expected[..., 2] + other[..., 0]) / 2)
    large = windows.apply(one(enlarged), x, scale=2)
    torch.testing.assert_close(windows.apply(one(enlarged), x.roll(2, 3), scale=2), large.roll(4, 3))


@given(
    height=st.integers(1, 15),
    width=st.integers(1, 15),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    share=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    weights=st.sampled_from(["pyramid", "ramp", "equal"]),
    tie=st.booleans(),
    wrap=st.booleans(),
    at_once=st.integers(1, 7),
)
@example(1, 1, (1, 1), (1, 1), "pyramid", True, False, 1)
@example(3, 9, (5, 4), (5, 4), "pyramid", True, False, 2)  # one row of windows
@settings(max_examples=60, deadline=None)
def test_every_pixel_is_covered_and_a_constant_stays_constant(
    height: int,
    width: int,
    size: tuple[int, int],
    share: tuple[int, int],
    weights: Any,
    tie: bool,
    wrap: bool,
    at_once: int,
) -> None:
    stride = (min(size[0], share[0]), min(size[1], share[1]))
    wrap = wrap and weights != "ramp" and not tie
    windows = Windows(size, stride, weights, tie, wrap)
    covered, summed = torch.zeros(height, width), torch.zeros(height, width, dtype=torch.float64)
    for place in windows.places(height, width):
        weight = windows.weight(place)
        assert weight.min() > 0
        covered[place.index()] += 1
        summed[place.index()] += weight
    assert covered.min() >= 1
    x = randn(2, 3, height, width)

    def row_and_window(parts: Tensor, places: Sequence[Place]) -> Tensor:
        assert len(parts) == 2 * len(places)
        assert len(places) <= at_once
        assert parts.shape[2:] == (min(size[0], height), min(size[1], width))
        return parts

    # A function of each pixel alone gives the same in all windows, so that shares must add up to one.
    ours = windows.apply(row_and_window, x, at_once=at_once)
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)
    constant = windows.apply(one(lambda part: torch.full_like(part, 3.0)), x.float())
    torch.testing.assert_close(constant, torch.full_like(constant, 3.0))


def test_one_window_is_the_function_itself() -> None:
    x = randn(2, 3, 4, 5, dtype=torch.float32)
    assert torch.equal(Windows(8, 4).apply(one(own_mean), x), own_mean(x))


def test_sums_are_in_float32_and_the_result_in_the_input_s_type() -> None:
    x = randn(1, 1, 4, 16).to(torch.bfloat16)
    ours = Windows(4, 1).apply(one(lambda part: part), x)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, x)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 0}, "size must be one or two positive ints, not 0"),
        ({"size": (4, 4, 4)}, "size must be one or two"),
        ({"size": True}, "size must be one or two"),
        ({"size": "64"}, "size must be one or two positive ints, not '64'"),
        ({"size": 4, "stride": 2.0}, "stride must be one or two positive ints, not 2.0"),
        ({"size": (8, 4), "stride": 6}, r"windows of \(8, 4\) need a stride of at most \(8, 4\), got 6"),
        ({"size": 4, "weights": "gauss"}, "'pyramid', 'ramp', 'equal', not 'gauss'"),
        ({"size": 4, "clip": (0.0, 0.5)}, "clip must be"),
        ({"size": 4, "clip": 0.1}, "clip must be"),
        ({"size": 4, "wrap": True, "tie_breaker": True}, "no first and last column"),
        ({"size": 4, "wrap": True, "weights": "ramp"}, "no first and last column"),
    ],
)
def test_what_are_no_windows(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Windows(**values)


def test_windows_of_broken_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"size \(8, 9\) must be multiples of 2"):
        Windows(4, 2).apply(one(own_mean), randn(1, 1, 8, 9), scale=Fraction(1, 2))
