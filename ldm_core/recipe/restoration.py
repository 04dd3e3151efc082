"""The recipe of a restored photo, in its PNG file: the options of `restoration.restore`, and the files.

It is JSON in the same text chunk as the recipe of a drawing, with the task "restore".
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from ldm_core.recipe.checks import read_built
from ldm_core.recipe.fields import SCHEMA
from ldm_core.recipe.files import SourceFile, read_source
from ldm_core.recipe.png import JSON_CHUNK, bytes_with_texts, read_texts
from ldm_core.support.json_text import parse_json
from ldm_core.support.limits import is_number, is_whole
from ldm_core.support.printable import shown

if TYPE_CHECKING:
    from PIL.Image import Image

TASK = "restore"
MAX_LETTERS = 200  # of an option that is a word
MAX_VERSIONS = 20
FILES = ("photo", "model", "parser", "detector")


@dataclass(frozen=True)
class Restoration:
    """How the faces of one photo were restored. `restoration.restore` documents the options.

    Raises ValueError, naming the field, for a value of the wrong type or out of range.
    """

    photo: SourceFile
    model: SourceFile
    upscale: int = 1
    threshold: float = 0.9
    aligned: bool = False
    mask: str = "square"
    background: str = "lanczos"
    seed: int = 0
    fidelity: float | None = None
    alignment: str | None = None
    keep_grey: bool | None = None
    parser: SourceFile | None = None
    detector: SourceFile | None = None
    device: str | None = None
    versions: dict[str, str] = field(default_factory=dict)  # of the packages that restored it

    def __post_init__(self) -> None:
        for names, fits, expected in _CHECKS:
            for name in names.split():
                value = getattr(self, name)
                if not fits(value):
                    raise ValueError(f"{name} must be {expected}, not {shown(value)}")


def _fraction(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


def _word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_LETTERS and value.isprintable()


def _or_none(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _file(value: Any) -> bool:
    return isinstance(value, SourceFile)


def _versions(value: Any) -> bool:
    few = isinstance(value, dict) and len(value) <= MAX_VERSIONS
    return few and all(_word(word) for pair in value.items() for word in pair)


_CHECKS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("photo model", _file, "a file's name and checksum"),
    ("parser detector", _or_none(_file), "a file's name and checksum, or nothing"),
    ("upscale", lambda value: is_whole(value, 1, 8), "a whole number in 1..8"),
    ("seed", lambda value: is_whole(value, 0, 2**62), "a whole number"),
    ("threshold", _fraction, "a number in [0, 1]"),
    ("fidelity", _or_none(_fraction), "a number in [0, 1] or nothing"),
    ("aligned", _flag, "true or false"),
    ("keep_grey", _or_none(_flag), "true, false or nothing"),
    ("mask background", _word, "a word"),
    ("alignment device", _or_none(_word), "a word or nothing"),
    ("versions", _versions, "names of packages with their versions"),
)


def restoration_without_paths(recipe: Restoration) -> Restoration:
    """The recipe without the paths of its files; their names and checksums stay."""
    found = {name: getattr(recipe, name) for name in FILES}
    return replace(recipe, **{name: replace(one, path=None) for name, one in found.items() if one})


def restoration_to_json(recipe: Restoration) -> str:
    """The recipe as ASCII JSON, the inverse of `restoration_from_json`."""
    return json.dumps({"schema": SCHEMA, "task": TASK, **asdict(recipe)}, allow_nan=False)


def restoration_from_json(text: str) -> Restoration:
    """The recipe of a JSON text. Raises ValueError for an invalid recipe, or one of another task."""
    data = parse_json(text, "the recipe")
    found = (data.pop("schema", None), data.pop("task", None)) if isinstance(data, dict) else (None, None)
    if found != (SCHEMA, TASK):
        raise ValueError(
            f"expected a recipe of schema {SCHEMA} for the task {TASK!r}, "
            f"got schema {shown(found[0])} and task {shown(found[1])}"
        )
    for name in FILES:
        if isinstance(data.get(name), dict):
            data[name] = read_source(name, data[name])
    recipe: Restoration = read_built(Restoration, data, "the recipe")
    return recipe


def restored_png(image: Image, recipe: Restoration) -> bytes:
    """A PNG file with the recipe, and with the picture's colour profile, resolution and EXIF data."""
    info = {name: image.info[name] for name in ("icc_profile", "dpi", "exif") if name in image.info}
    return bytes_with_texts(image, {JSON_CHUNK: restoration_to_json(recipe)}, **info)


def read_restoration(path: str | os.PathLike[str]) -> Restoration:
    """The recipe in a PNG file that the `restore` command wrote. The picture is not decoded.

    Raises OSError for a file that cannot be opened or is not a regular file, and ValueError, beginning with
    the path, for a file that is not a PNG file or has no valid recipe of a restored photo.
    """
    text = read_texts(path).get(JSON_CHUNK)
    if text is None:
        raise ValueError(f"{os.fspath(path)}: a PNG file without the recipe of a restored photo")
    try:
        return restoration_from_json(text)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


def is_restoration(path: str | os.PathLike[str]) -> bool:
    """Whether a PNG file's recipe is that of a restored photo. The errors are those of `read_restoration`."""
    text = read_texts(path).get(JSON_CHUNK)
    try:
        data = None if text is None else parse_json(text, "the recipe")
    except ValueError:
        return False  # `read_recipe` raises the same error with the path
    return isinstance(data, dict) and data.get("task") == TASK


def restoration_lines(recipe: Restoration) -> str:
    """The recipe as text, one line for each field that says something."""
    lines = []
    for own in fields(recipe):
        value = getattr(recipe, own.name)
        if isinstance(value, SourceFile):
            value = f"{shown(value.name)} (sha256 {value.short_hash})"
        if value not in (None, {}):
            lines.append(f"{own.name:11} {value}")
    return "\n".join(lines)
