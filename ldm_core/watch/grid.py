"""A grid of images with a title, row labels and image labels.

Text is drawn in Pillow's built-in Latin font; any other letter is drawn as a box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Font = FreeTypeFont | ImageFont

PAPER, INK, FAINT, EDGE = "#ffffff", "#1c1c1e", "#76767c", "#e3e3e6"
MARGIN, GAP = 20, 8  # pixels around the grid, and between images
TITLE_SIZE, TEXT_SIZE, LINE = 20, 13, 17  # font sizes, and the line height of labels, in pixels
SMALLEST, LARGEST = 128, 256  # default range of an image's longer side, in pixels
LONGEST = 400  # letters after which a line is cut before it is measured


def make_grid(
    pictures: Sequence[Sequence[Image]],
    *,
    title: str = "",
    rows: Sequence[str] = (),
    labels: Sequence[Sequence[str]] = (),
    tile: int | None = None,
) -> Image:
    """Draw rows of images on a white background.

    pictures: one sequence per row; rows may differ in length.
    title: one line above the grid.
    rows: a label to the left of each row; may be shorter than `pictures`.
    labels: for each row, a label above each image; may be shorter than `pictures`. A second line is drawn
        in grey.
    tile: the longer side of an image in pixels; by default its own, clamped to 128..256.

    Text that does not fit is cut and ends in "…". Raises ValueError if there is no image or `tile` < 1.
    """
    from PIL import Image as PIL
    from PIL import ImageDraw, ImageFont

    if not any(len(row) for row in pictures):
        raise ValueError("expected at least one picture, got none")
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be a positive number of pixels, not {tile}")
    scaled = [[_scaled(picture, tile) for picture in row] for row in pictures]
    width = max(picture.width for row in scaled for picture in row)
    height = max(picture.height for row in scaled for picture in row)
    large, small = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(TEXT_SIZE)

    gutter = max((_text_width(line, small) for text in rows for line in text.split("\n")), default=0)
    left = MARGIN + (gutter + 2 * GAP if gutter else 0)
    right = left + max(len(row) for row in scaled) * (width + GAP) - GAP
    heads = [_lines(labels[i]) * LINE + 4 if i < len(labels) else 0 for i in range(len(scaled))]
    top = MARGIN + (TITLE_SIZE + GAP + 4 if title else 0)
    bottom = top + sum(heads) + len(scaled) * (height + GAP) - GAP
    sheet = PIL.new("RGB", (right + MARGIN, bottom + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    heading = shortened(" ".join(title.split()), right - MARGIN, large)
    draw.text((MARGIN, MARGIN), heading, INK, large, anchor="lt")

    y = top
    for i, row in enumerate(scaled):
        words = labels[i] if i < len(labels) else ()
        for column, text in enumerate(words[: len(row)]):
            _write(draw, left + column * (width + GAP), y, text, small, width)
        y += heads[i]
        if i < len(rows):
            _write(draw, MARGIN, y + height // 2 - LINE, rows[i], small, gutter)
        for column, picture in enumerate(row):
            x = left + column * (width + GAP)
            draw.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=EDGE)
            sheet.paste(picture, (x, y))
        y += height + GAP
    return sheet


def stack(sheets: Sequence[Image]) -> Image:
    """Stack images vertically, left-aligned, on a white background. Raises ValueError if there is none."""
    from PIL import Image as PIL

    if not sheets:
        raise ValueError("expected at least one sheet, got none")
    whole = PIL.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), PAPER)
    y = 0
    for sheet in sheets:
        whole.paste(sheet, (0, y))
        y += sheet.height
    return whole


def _scaled(picture: Image, tile: int | None) -> Image:
    from PIL import Image as PIL

    longer = max(picture.size)
    target = min(max(longer, SMALLEST), LARGEST) if tile is None else tile
    width, height = (max(1, round(side * target / longer)) for side in picture.size)
    picture = picture.convert("RGB")
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), PIL.Resampling.LANCZOS)


def _lines(texts: Sequence[str]) -> int:
    return max((len(text.split("\n")) for text in texts), default=0)


def _write(draw: ImageDraw, x: int, y: int, text: str, font: Font, room: int) -> None:
    for i, line in enumerate(text.split("\n")):
        draw.text((x, y + i * LINE), shortened(line, room, font), FAINT if i else INK, font)


def _text_width(text: str, font: Font) -> int:
    return int(font.getlength(text)) + 1


def shortened(text: str, room: int, font: Font) -> str:
    """The text, cut so that it ends in "…" if it is wider than `room` pixels."""
    if len(text) <= LONGEST and _text_width(text, font) <= room:
        return text
    text = text[:LONGEST]
    while text and _text_width(text + "…", font) > room:
        text = text[:-1]
    return text.rstrip() + "…"
