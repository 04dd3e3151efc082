"""Reading what a drawing starts from: prompts, and pictures with the records of their files."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ldm_core.images import open_picture, to_grey, to_rgb
from ldm_core.recipe import SourceFile, source_file
from ldm_core.support.regular_file import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PROMPTS_BYTES = 2**24

# Lengths are bounded, so that the time to search a prompt is proportional to its length.
_TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{1,200}>", re.IGNORECASE)
_WEIGHT = re.compile(r"(?<!\\)\([^()]{1,200}:\s{0,9}(?:\d{1,4}(?:\.\d{0,4})?|\.\d{1,4})\s{0,9}\)")


@dataclass(frozen=True)
class Inputs:
    """The pictures that a drawing starts from, with the records of their files."""

    image: Image | None = None
    mask: Image | None = None
    image_file: SourceFile | None = None
    mask_file: SourceFile | None = None


@dataclass(frozen=True)
class Subject:
    """What one picture is drawn from, besides an image and a mask.

    inputs: what the model's conditioner takes for one picture; None: nothing. fields: of the recipe.
    """

    inputs: Any
    fields: dict[str, Any]


def open_rgb(path: str, option: str) -> Image:
    """A picture in RGB, upright. Raises OSError or ValueError, which names the option and the file."""
    with named(f"{option} {path}"):
        return to_rgb(open_picture(path))


def open_inputs(image: str | None, mask: str | None, size: tuple[int, int] | None) -> Inputs:
    """Open the image and the mask upright. With a `size` (width, height), crop them to it and scale them.

    Raises OSError for a file that cannot be opened, and ValueError for a file that is not a picture or a mask
    whose size differs from the image's.
    """
    if image is None:
        return Inputs()
    image_file, picture = _open(image, to_rgb)
    if mask is None:
        return Inputs(fitted(picture, size), None, image_file)
    mask_file, white = _open(mask, to_grey)
    if white.size != picture.size:
        sizes = ["×".join(map(str, one.size)) for one in (white, picture)]
        raise ValueError(
            f"the mask and the image must have the same size, got {sizes[0]} and {sizes[1]} pixels"
        )
    return Inputs(fitted(picture, size), fitted(white, size), image_file, mask_file)


def _open(path: str, convert: Callable[[Image], Image]) -> tuple[SourceFile, Image]:
    with named(path):
        picture = convert(open_picture(path))
    return source_file(path), picture


@contextmanager
def named(name: str) -> Iterator[None]:
    """Begin the message of a ValueError with a name."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def fitted(image: Image, size: tuple[int, int] | None) -> Image:
    """A picture cropped around its centre to a size's proportions and scaled; None: as it is."""
    from PIL import Image as PIL
    from PIL import ImageOps

    if size is None or image.size == size:
        return image
    return ImageOps.fit(image, size, PIL.Resampling.LANCZOS if image.mode == "RGB" else PIL.Resampling.BOX)


def read_prompts(name: str) -> list[str]:
    """The prompts of a UTF-8 file, or of standard input for "-": one per line.

    Blank lines and comments, which begin with "#", are skipped. A prompt that begins with "#" is written with
    a backslash before it. Raises ValueError for a file without prompts, OSError for one that cannot be read.
    """
    try:
        text = _bytes(name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {name}: not UTF-8 text (byte {error.start})") from None
    lines = [line.strip() for line in text.split("\n")]
    prompts = [
        line.removeprefix("\\") if line.startswith("\\#") else line for line in lines if line[:1] != "#"
    ]
    prompts = [prompt for prompt in prompts if prompt]
    if not prompts:
        raise ValueError(
            f"--prompts {name}: no prompts in {'standard input' if name == '-' else 'this file'}"
        )
    return prompts


def _bytes(name: str) -> bytes:
    if name != "-":
        with open_regular(name, MAX_PROMPTS_BYTES) as file:
            return file.read(MAX_PROMPTS_BYTES)
    data = sys.stdin.buffer.read(MAX_PROMPTS_BYTES + 1)
    if len(data) > MAX_PROMPTS_BYTES:
        raise ValueError(f"--prompts -: more than {MAX_PROMPTS_BYTES:,} bytes of prompts")
    return data


def uninterpreted(prompts: Iterable[str]) -> list[str]:
    """The first LoRA tag and the first weight in the web UIs' grammar, `<lora:NAME:1>` and `(text:1.2)`."""
    found = (next(filter(None, map(pattern.search, prompts)), None) for pattern in (_TAG, _WEIGHT))
    return [match[0] for match in found if match is not None]
