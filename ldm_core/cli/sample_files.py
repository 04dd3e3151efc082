"""Reading the files of `sample` and `upscale`: names, layouts, maps, depth maps and embeddings.

All of them may come from a stranger. Sizes are bounded, and errors are one line that begins with the option.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from ldm_core.checkpoint.reader import read
from ldm_core.checkpoint.values import all_finite
from ldm_core.cli.defaults import MAX_PICTURES
from ldm_core.cli.inputs import named
from ldm_core.conditioners.layout import as_box
from ldm_core.images import open_picture
from ldm_core.recipe.checks import MAX_OBJECTS
from ldm_core.recipe.fields import BOX, FLAGS
from ldm_core.support.json_text import parse_json
from ldm_core.support.printable import few, shown
from ldm_core.support.regular_file import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_TEXT_BYTES = 2**20  # of names or of a layout; those of 20,000 classes have half of this
MAX_NAME = 1000  # letters


def read_names(path: str) -> list[str]:
    """The names of classes: line k is the name of class k, from 0. Raises ValueError or OSError."""
    lines = _text(path, "--names").rstrip().split("\n")
    names = [line.strip() for line in lines]
    for number, name in enumerate(names, start=1):
        if not name or len(name) > MAX_NAME:
            found = "is empty" if not name else f"has {len(name):,} letters, more than {MAX_NAME:,}"
            raise ValueError(f"--names {path}: expected one name per line; line {number} {found}")
    return names


def read_layout(path: str) -> tuple[dict[str, Any], ...]:
    """The objects of a layout, as recipes record them. Raises ValueError or OSError."""
    option = f"--layout {path}"
    objects = parse_json(_text(path, "--layout"), option)
    if not isinstance(objects, list) or len(objects) > MAX_OBJECTS:
        found = f"{len(objects):,}" if isinstance(objects, list) else shown(objects)
        raise ValueError(
            f"{option}: expected a list of up to {MAX_OBJECTS} objects [label, x, y, width, height], got "
            f"{found}"
        )
    return tuple(_object(value, f"{option}: object {k}") for k, value in enumerate(objects))


def _object(value: Any, name: str) -> dict[str, Any]:
    with named(name):
        box = as_box(value)
    flags = {flag: value for flag in FLAGS if (value := getattr(box, flag)) is not False}
    return {key: getattr(box, key) for key in BOX} | flags


def read_values(path: str, option: str) -> Image:
    """A picture whose values are classes or depths, in its own mode. Raises ValueError or OSError."""
    with named(f"{option} {path}"):
        return open_picture(path)


def read_embeddings(path: str) -> Tensor:
    """The one tensor (B, k, width) of a file of embeddings. Raises ValueError or OSError."""
    open_regular(path).close()  # raises OSError for what is not a file
    tensors = list(read(path).tensors.values())
    with named(f"--embeddings {path}"):
        if len(tensors) != 1 or tensors[0].ndim != 3 or not 0 < len(tensors[0]) <= MAX_PICTURES:
            shapes = few([str(tuple(tensor.shape)) for tensor in tensors])
            raise ValueError(
                f"expected one tensor (B, k, width), B in 1..{MAX_PICTURES}, got {shapes or 'none'}"
            )
        if not tensors[0].is_floating_point() or not all_finite(tensors[0]):
            raise ValueError(f"expected finite numbers, got {tensors[0].dtype} or NaN or infinity")
    return tensors[0]


def _text(path: str, option: str) -> str:
    with open_regular(path, MAX_TEXT_BYTES) as file:
        data = file.read(MAX_TEXT_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{option} {path}: not UTF-8 text (byte {error.start})") from None
