"""A picture with its recipe, and a numbered grid of them in one file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ldm_core.images import open_picture, to_rgb
from ldm_core.recipe import Noises, Recipe, read_recipe, write_png

if TYPE_CHECKING:
    from PIL.Image import Image

GAP, HEAD = 8, 22  # pixels between the pictures of a sheet, and of the line with a picture's number
PAPER, INK, FONT = "#ffffff", "#1c1c1e", 15


@dataclass(frozen=True, eq=False)
class Picture:
    """A PIL image and the recipe with which the workbench goes on from it."""

    image: Image
    recipe: Recipe

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG file that `Picture.open` reads. Raises OSError if it cannot be written."""
        write_png(self.image, path, self.recipe)

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Picture:
        """The picture of a PNG file with a recipe.

        Raises OSError for a file that cannot be read, and ValueError, which names it, without a recipe of one
        picture.
        """
        pictures = Grid.open(path).pictures
        if len(pictures) != 1:
            raise ValueError(
                f"{os.fspath(path)}: a grid of {len(pictures)} pictures; give the number of one of them"
            )
        return pictures[0]

    @property
    def noises(self) -> Noises:
        """How the picture was drawn. Those of other tasks and programs are not drawn from noise alone, nor
        are those with controls or an image prompt.
        """
        recipe = self.recipe
        from_noise = recipe.task == "txt2img" and "ldm_core" in recipe.versions
        from_noise = from_noise and not recipe.controls and not recipe.image_prompts
        return recipe.noises or Noises((((recipe.seed, 1.0),),), alone=from_noise)


@dataclass(frozen=True, eq=False)
class Grid:
    """Pictures of one size that were drawn alike, numbered from 1. Raises ValueError without a picture."""

    pictures: tuple[Picture, ...]

    def __post_init__(self) -> None:
        if not self.pictures:
            raise ValueError("a grid needs at least one picture, got none")
        sizes = {picture.image.size for picture in self.pictures}
        if len(sizes) > 1:
            raise ValueError(f"a grid needs pictures of one size, got {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Picture]:
        return iter(self.pictures)

    def pick(self, number: int) -> Picture:
        """The picture of this number, from 1. Raises ValueError for another number."""
        if not isinstance(number, int) or not 1 <= number <= len(self):
            count = "one picture" if len(self) == 1 else f"pictures 1 to {len(self)}"
            raise ValueError(f"there is no picture {number}: the grid has {count}")
        return self.pictures[number - 1]

    @property
    def images(self) -> list[Image]:
        """The PIL images, in order."""
        return [picture.image for picture in self.pictures]

    def sheet(self) -> Image:
        """One image of all pictures, unscaled, each below its number."""
        from PIL import Image as PIL
        from PIL import ImageDraw, ImageFont

        size = self.pictures[0].image.size
        places = _places(len(self), size)
        sheet = PIL.new("RGB", _sheet_size(len(self), size), PAPER)
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
        for number, (picture, (x, y)) in enumerate(zip(self.images, places), start=1):
            draw.text((x, y - HEAD // 2), str(number), INK, font, anchor="lm")
            sheet.paste(picture, (x, y))
        return sheet

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sheet as a PNG file that `Grid.open` reads. Raises OSError if it cannot be written."""
        write_png(self.sheet(), path, self.recipe)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the sheet: that of the first picture, with the noises of all."""
        first = self.pictures[0]
        mixtures = tuple(picture.noises.mixtures[0] for picture in self)
        return replace(first.recipe, noises=replace(first.noises, mixtures=mixtures))

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Grid:
        """The grid of a sheet, or of a file with one picture. Raises as `Picture.open`."""
        recipe = read_recipe(path)
        try:
            image = to_rgb(open_picture(path))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None
        noises = recipe.noises
        if noises is None or len(noises.mixtures) == 1:
            return Grid((Picture(image, recipe),))
        size, count = (recipe.width, recipe.height), len(noises.mixtures)
        if image.size != _sheet_size(count, size):
            raise ValueError(
                f"{os.fspath(path)}: the recipe is of {count} pictures of {size[0]}×{size[1]}, which fill "
                f"{'×'.join(map(str, _sheet_size(count, size)))} pixels, not {image.width}×{image.height}"
            )
        cuts = [image.crop((x, y, x + size[0], y + size[1])) for x, y in _places(count, size)]
        recipes = [
            replace(recipe, seed=mixture[0][0], noises=replace(noises, mixtures=(mixture,)))
            for mixture in noises.mixtures
        ]
        return Grid(tuple(Picture(cut, own) for cut, own in zip(cuts, recipes)))


def _columns(count: int) -> int:
    return math.ceil(math.sqrt(count))


def _places(count: int, size: tuple[int, int]) -> Sequence[tuple[int, int]]:
    """The upper left corner of each picture in a sheet."""
    columns = _columns(count)
    return [
        (GAP + k % columns * (size[0] + GAP), HEAD + k // columns * (size[1] + HEAD)) for k in range(count)
    ]


def _sheet_size(count: int, size: tuple[int, int]) -> tuple[int, int]:
    columns = _columns(count)
    rows = math.ceil(count / columns)
    return GAP + columns * (size[0] + GAP), rows * (size[1] + HEAD) + GAP
