"""A row of a job: what one picture is drawn from, and its seed."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm_core.images import open_picture, to_rgb
from ldm_core.recipe.files import SourceFile, file_sha256
from ldm_core.support.json_text import parse_json
from ldm_core.support.printable import shown

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_ID = 200  # letters
WHOLE = ("seed", "steps", "width", "height", "noise_level")
NUMBERS = ("guidance_scale", "strength")
TEXTS = ("prompt", "negative_prompt")
COLUMNS = ("id", *TEXTS, "class_label", "layout", "image", *WHOLE, *NUMBERS)


@dataclass(frozen=True)
class Row:
    """One picture of a job. A field that is None has the job's value.

    seed: None: a function of the job's seed and the id (`row_seed`).
    image: the picture to start from, or the small picture for super-resolution, in RGB.
    inputs: what the model's conditioner takes, for models whose inputs have no field here.
    """

    id: str
    prompt: str | None = None
    negative_prompt: str | None = None
    class_label: int | str | None = None
    layout: tuple[dict[str, Any], ...] | None = None
    image: Image | None = None
    image_file: SourceFile | None = None
    inputs: Any = None
    seed: int | None = None
    steps: int | None = None
    width: int | None = None
    height: int | None = None
    guidance_scale: float | None = None
    strength: float | None = None
    noise_level: int | None = None


def row_seed(job_seed: int, row_id: str) -> int:
    """The seed in 0..2**32-1 of a row without one: the first 32 bits of SHA-256 of both.

    It does not depend on the order of rows, on processes or on batches. PyTorch's CPU generator has 2**32
    different states, so among a million rows about 116 pairs start from the same noise.
    """
    return int.from_bytes(hashlib.sha256(f"{job_seed}:{row_id}".encode()).digest()[:4], "big")


def id_of(value: Any) -> str:
    """The id in a column, as text. Raises ValueError for other values than text and whole numbers."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if abs(value) < 2**63 else ""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID or not _is_unicode(value):
        raise ValueError(f"an id must be text of 1..{MAX_ID} letters or a whole number, not {shown(value)}")
    return value


def parse_row(row_id: str, values: Mapping[str, Any], images: Path | None = None) -> Row:
    """The row with these values, by column. None and empty text stand for a missing value.

    values: "image" is the bytes of a picture file, a mapping with "bytes" as `datasets` stores it, or a path
        relative to `images`. "layout" is a list of objects, or the JSON of one.
    images: the folder of pictures; without it, paths raise ValueError.

    Numbers may be text. Columns that are not in COLUMNS are ignored. Raises ValueError, naming the column,
    for an invalid value, and OSError for a picture that cannot be read.
    """
    given = {name: values[name] for name in COLUMNS[1:] if not _is_missing(values.get(name))}
    fields: dict[str, Any] = {}
    for name, value in given.items():
        if name in WHOLE:
            fields[name] = _whole(name, value)
        elif name in NUMBERS:
            fields[name] = _number(name, value)
        elif name == "class_label":
            fields[name] = _label(value)
        elif name == "layout":
            fields[name] = _layout(value)
        elif name == "image":
            fields |= _picture(value, images)
        else:
            fields[name] = _text(name, value)
    return Row(row_id, **fields)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _is_unicode(value):
        raise ValueError(f"{name} must be text, not {shown(value)}")
    return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,19}", value.strip()):
        value = int(value)
    if isinstance(value, float) and value.is_integer():  # a column with missing values is one of floats
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} must be a whole number, not {shown(value)}")
    return value


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a number, not {shown(value)}")
    return number


def _label(value: Any) -> int | str:
    if isinstance(value, str) and not re.fullmatch(r"\d{1,9}", value):
        return _text("class_label", value)
    return _whole("class_label", value)


def _layout(value: Any) -> tuple[dict[str, Any], ...]:
    objects = parse_json(value, "layout") if isinstance(value, str) else value
    if not isinstance(objects, list | tuple) or not all(isinstance(one, dict) for one in objects):
        raise ValueError(f"layout must be a list of objects, not {shown(objects)}")
    return tuple(objects)


def _picture(value: Any, images: Path | None) -> dict[str, Any]:
    name = ""
    if isinstance(value, Mapping):  # as `datasets` stores pictures
        name, value = str(value.get("path") or ""), value.get("bytes")
    if isinstance(value, bytes):
        file = SourceFile(Path(name).name, hashlib.sha256(value).hexdigest())
        return {"image": _opened(value), "image_file": file}
    if not isinstance(value, str):
        raise ValueError(f"image must be the bytes of a picture or a path, not {shown(value)}")
    if images is None:
        raise ValueError(f"image {shown(value)} is a path, which needs the folder of the pictures (images)")
    path = (images / value).resolve()
    if not path.is_relative_to(images.resolve()):
        raise ValueError(f"image {shown(value)} is outside of the folder of the pictures")
    return {"image": _opened(path), "image_file": SourceFile(path.name, file_sha256(path))}


def _opened(source: Path | bytes) -> Image:
    try:
        return to_rgb(open_picture(source))
    except ValueError as error:
        raise ValueError(f"image: {error}") from None
