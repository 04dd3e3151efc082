"""A recipe inside a picture's PNG file, in two text chunks (ISO/IEC 15948, section 11.3.3).

ldm_core     JSON, complete and exact
parameters   the text of `parameters_text`, read only where the first is missing
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_core.recipe.fields import Recipe, from_json, to_json
from ldm_core.recipe.parameters_text import from_parameters_text, to_parameters_text

if TYPE_CHECKING:
    from PIL.Image import Image

JSON_CHUNK, TEXT_CHUNK = "ldm_core", "parameters"


def write_png(image: Image, path: str | os.PathLike[str], recipe: Recipe) -> None:
    """Save a PIL image as a PNG that carries its recipe, replacing what is there.

    It is written under another name in the same folder and then moved, so that nobody sees half a file.
    Raises OSError if it cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text(TEXT_CHUNK, to_parameters_text(recipe).replace("\0", "\ufffd"))  # PNG text has no NUL
    chunks.add_text(JSON_CHUNK, to_json(recipe))
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(unfinished, "wb") as file:
            image.save(file, format="PNG", pnginfo=chunks)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe in a PNG file, this package's own or else what another tool's text tells.

    Raises OSError for a file that cannot be opened, and ValueError, beginning with the path, for one that
    is no PNG or has no recipe that can be read.
    """
    texts = _texts(path)
    try:
        if JSON_CHUNK in texts:
            return from_json(texts[JSON_CHUNK])
        if TEXT_CHUNK in texts:
            return from_parameters_text(texts[TEXT_CHUNK])
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None
    raise ValueError(f"{os.fspath(path)}: a PNG file without a recipe")


def _texts(path: str | os.PathLike[str]) -> dict[str, str]:
    from PIL import Image, UnidentifiedImageError

    with open(path, "rb") as file:
        try:
            with Image.open(file, formats=["PNG"]) as image:
                return dict(getattr(image, "text", {}))
        except UnidentifiedImageError:
            raise ValueError(f"{os.fspath(path)}: not a PNG file") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{os.fspath(path)}: a damaged PNG file ({error})") from None
