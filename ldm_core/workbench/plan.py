"""What the pictures of one grid have in common: prompt, size, noises and flags."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ldm_core.config import LatentDiffusionConfig
from ldm_core.recipe import Noises
from ldm_core.workbench.pictures import Picture

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Plan:
    """The pictures of one grid. mixtures: pairs (seed, amount) for each, as in `ldm_core.recipe.Noises`."""

    text: str
    no: str
    size: tuple[int, int]  # width and height in pixels
    mixtures: tuple[tuple[tuple[int, float], ...], ...]
    alone: bool = True
    chaos: int = 0
    tile: bool = False

    @property
    def seeds(self) -> list[int]:
        """The first seed of each picture's noise."""
        return [mixture[0][0] for mixture in self.mixtures]

    @property
    def sides(self) -> dict[str, int]:
        """The size as arguments of a sampler."""
        return {"width": self.size[0], "height": self.size[1]}

    def noises(self, number: int) -> Noises:
        """The noises of one picture, counted from 0."""
        return Noises((self.mixtures[number],), self.alone, self.chaos, self.tile)


def plan_of(picture: Picture) -> Plan:
    """A plan that goes on from a picture's pixels."""
    recipe = picture.recipe
    mixtures = picture.noises.mixtures
    return Plan(recipe.prompt, recipe.negative_prompt, picture.image.size, mixtures, alone=False)


def size_for(config: LatentDiffusionConfig, ratio: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height for proportions: those of the training resolution without.

    Of the sizes around the training resolution's area that the networks take, the one with the nearest
    proportions.
    """
    if ratio is None:
        return config.image_size, config.image_size
    unit, wanted = config.size_multiple, ratio[0] / ratio[1]
    exact = (config.image_size * math.sqrt(wanted), config.image_size / math.sqrt(wanted))
    floors = [max(1, math.floor(side / unit)) for side in exact]
    sizes = [((floors[0] + i) * unit, (floors[1] + j) * unit) for i in (0, 1) for j in (0, 1)]

    def error(size: tuple[int, int]) -> tuple[float, float]:
        area = size[0] * size[1] / config.image_size**2
        return round(abs(math.log(size[0] / size[1] / wanted)), 6), abs(math.log(area))

    return min(sizes, key=error)


def fitted(image: Any, size: tuple[int, int]) -> Image:
    """The image in RGB, cropped around its middle to the size's proportions and scaled."""
    from PIL import Image as PIL
    from PIL import ImageOps

    if not isinstance(image, PIL.Image):
        raise ValueError(f"expected a picture as a PIL image, not {type(image).__name__}")
    image = image.convert("RGB")
    return image if image.size == size else ImageOps.fit(image, size, PIL.Resampling.LANCZOS)


def enlarged(image: Image, size: tuple[int, int], *, wraps: bool) -> Image:
    """The image scaled; `wraps`: as it continues at its opposite edges."""
    from PIL import Image as PIL

    if not wraps:
        return image.resize(size, PIL.Resampling.LANCZOS)
    width, height = image.size
    around = PIL.new("RGB", (3 * width, 3 * height))
    for column in range(3):
        for row in range(3):
            around.paste(image, (column * width, row * height))
    around = around.resize((3 * size[0], 3 * size[1]), PIL.Resampling.LANCZOS)
    return around.crop((size[0], size[1], 2 * size[0], 2 * size[1]))
