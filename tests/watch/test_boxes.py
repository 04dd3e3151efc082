"""Boxes of layouts drawn over pictures."""

from __future__ import annotations

import pytest
from PIL import Image

from ldm_core.conditioners import Box
from ldm_core.watch import draw_boxes
from ldm_core.watch.boxes import COLOURS


def test_boxes_are_drawn_where_they_are() -> None:
    grey = Image.new("L", (201, 101), 128)
    drawn = draw_boxes(grey, [("cat", 0.25, 0.5, 0.5, 0.4), Box(1, 0.5, 0, 0.5, 0.3)], names=["dog", "cat"])
    assert (drawn.size, drawn.mode) == ((201, 101), "RGB")
    red = tuple(int(COLOURS[0][k : k + 2], 16) for k in (1, 3, 5))
    for corner in [(50, 50), (150, 50), (50, 90), (150, 90), (100, 0), (200, 30)]:
        assert drawn.getpixel(corner) == red, corner
    assert drawn.getpixel((100, 70)) == drawn.getpixel((20, 20)) == (128, 128, 128)
    assert grey.getextrema() == (128, 128)


def test_colours_follow_labels_and_labels_stay_within_the_picture() -> None:
    white = Image.new("RGB", (120, 90), "white")
    same = draw_boxes(white, [("a", 0, 0.5, 0.2, 0.2), ("a", 0.5, 0.5, 0.2, 0.2)])
    other = draw_boxes(white, [("a", 0, 0.5, 0.2, 0.2), ("b", 0.5, 0.5, 0.2, 0.2)])
    assert same.getpixel((60, 62)) == same.getpixel((0, 62)) == other.getpixel((0, 62))
    assert other.getpixel((60, 62)) != other.getpixel((0, 62))
    for text in ("", "猫\n\x1b", "long " * 1000):
        assert draw_boxes(white, [(text, 0.99, 0.99, 0.01, 0.01)]).size == white.size
    with pytest.raises(ValueError, match="is outside the picture"):
        draw_boxes(white, [(0, 1, 1, 1, 1)])
