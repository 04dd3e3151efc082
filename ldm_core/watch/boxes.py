"""The boxes of a layout drawn over a picture, to see whether a layout model put its objects there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ldm_core.conditioners.layout import Names, as_box, clamped, class_numbers
from ldm_core.watch.grid import LINE, TEXT_SIZE, shortened

if TYPE_CHECKING:
    from PIL.Image import Image

# Dark enough for white text; labels take them in turn.
COLOURS = ("#c0392b", "#1f618d", "#1e8449", "#7d3c98", "#af601a", "#117864", "#922b5b", "#5d6d7e")
PAD = 3  # pixels around a label


def draw_boxes(image: Image, layout: Sequence[Any], names: Names | None = None) -> Image:
    """A copy of an image with the boxes of one layout and their labels, in one colour for each label.

    image: in any mode; the result is RGB. layout: objects as `Layout` takes them.
    names: names of classes, for objects that are labelled with numbers.
    Raises ValueError for boxes that `Layout.tokens` refuses.
    """
    from PIL import ImageDraw, ImageFont

    named = {number: name for name, number in class_numbers(names).items()}
    sheet = image.convert("RGB")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    line = max(2, min(sheet.size) // 150)
    colours: dict[str, str] = {}
    for box in map(as_box, layout):
        text = str(named.get(box.label, box.label)) if isinstance(box.label, int) else box.label
        colour = colours.setdefault(text, COLOURS[len(colours) % len(COLOURS)])
        x, y, width, height = clamped(box.rectangle)
        left, top = round(x * (sheet.width - 1)), round(y * (sheet.height - 1))
        right, bottom = round((x + width) * (sheet.width - 1)), round((y + height) * (sheet.height - 1))
        draw.rectangle((left, top, right, bottom), outline=colour, width=line)
        label = shortened(" ".join(text.split()), sheet.width - 2 * PAD, font)
        across = int(font.getlength(label)) + 2 * PAD
        left = max(0, min(left, sheet.width - across))
        top = top - LINE if top >= LINE else top  # above the box if there is room
        draw.rectangle((left, top, left + across, top + LINE), fill=colour)
        draw.text((left + PAD, top), label, "#ffffff", font)
    return sheet
