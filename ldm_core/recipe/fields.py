"""The fields of a recipe, and their JSON. Reading the JSON of a recipe gives an equal recipe."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from ldm_core.recipe.noises import Noises, mixtures_of
from ldm_core.support.json_text import parse_json
from ldm_core.support.limits import MAX_ROWS, MAX_SIZE, MAX_TIMESTEPS
from ldm_core.support.printable import shown
from ldm_core.support.regular_file import open_regular

SCHEMA = 1
HASH_DIGITS = 10  # of a file's SHA-256, which web UIs show as "Model hash"
HASH_BLOCK = 2**22  # bytes

# Limits far above the needs of any model, and within the range of the library's computations.
MAX_LETTERS = 2**15  # of a prompt, a name or a path
MAX_STEPS, MAX_CLIP_SKIP = 100_000, 1000
MAX_OBJECTS = 1000  # of a layout
RANGES = {
    "seed": (0, 2**63 - 1),
    "steps": (1, MAX_STEPS),
    "width": (1, MAX_SIZE),
    "height": (1, MAX_SIZE),
    "clip_skip": (0, MAX_CLIP_SKIP),
    "noise_level": (0, MAX_TIMESTEPS),
    "embedding_row": (0, MAX_ROWS),
    "class_count": (1, MAX_ROWS),
}

TaskName = Literal["txt2img", "img2img", "inpaint", "sample", "upscale", "imagine"]
TASKS = ("txt2img", "img2img", "inpaint", "sample", "upscale", "imagine")
SOURCES = ("image", "mask", "map", "depth", "clip_embeddings")  # the fields of input files
BOX = ("label", "x", "y", "width", "height")  # of an object of a layout
FLAGS = ("group", "occluded", "depiction", "inside")


@dataclass(frozen=True)
class SourceFile:
    """A file that a picture was made from.

    sha256: checksum of the whole file, in hexadecimal. Other tools record only its first digits, or "".
    path: the path as it was given; None for the bundled model, if unknown, or if removed (`without_paths`).
    """

    name: str
    sha256: str
    path: str | None = None

    @property
    def short_hash(self) -> str:
        """The first digits of the SHA-256, as programs write them beside pictures."""
        return self.sha256[:HASH_DIGITS]

    def same_as(self, other: SourceFile) -> bool:
        """Whether the digits that both checksums have are equal. False if a checksum is missing."""
        digits = min(len(self.sha256), len(other.sha256))
        return digits > 0 and self.sha256[:digits] == other.sha256[:digits]


@dataclass(frozen=True)
class AdapterFile:
    """A LoRA with its scale, or a textual inversion with its name in prompts."""

    file: SourceFile
    scale: float = 1.0
    name: str | None = None


@dataclass(frozen=True)
class Recipe:
    """How one picture was drawn. `Sampler.txt2img` documents the fields named like its parameters.

    Raises ValueError, naming the field, for a value of the wrong type, a number that is not finite or outside
    its range (`RANGES`), or text that is not valid Unicode, which a PNG file cannot store.
    """

    task: TaskName
    prompt: str
    seed: int  # of this picture, independent of its batch
    steps: int
    width: int  # pixels
    height: int
    guidance_scale: float
    scheduler: str  # a class of ldm_core.schedulers, or another tool's name of a sampler
    model: SourceFile
    negative_prompt: str = ""
    scheduler_settings: dict[str, Any] = field(default_factory=dict)
    guidance_rescale: float = 0.0
    strength: float | None = None  # None for txt2img
    clip_skip: int | None = None  # None: the model's own
    prompt_syntax: str | None = None  # None: prompts are plain text
    config: str | None = None  # a preset or a YAML file, if given
    prediction: str | None = None  # "eps", "v" or "x0", if given
    ema: bool | None = None  # None: as `load` decides
    autoencoder: SourceFile | None = None  # if not the model's own
    loras: tuple[AdapterFile, ...] = ()
    embeddings: tuple[AdapterFile, ...] = ()
    image: SourceFile | None = None
    mask: SourceFile | None = None
    device: str | None = None
    dtype: str | None = None  # "float32", …
    not_finite: str | None = None  # what was NaN or infinite, if anything
    versions: dict[str, str] = field(default_factory=dict)  # of the packages that drew it
    # Inputs other than prompts, of the tasks "sample" and "upscale":
    class_label: int | str | None = None
    layout: tuple[dict[str, Any], ...] | None = None  # objects with the keys of BOX, and FLAGS that are true
    class_names: dict[str, int] = field(default_factory=dict)  # the names in class_label or layout
    class_count: int | None = None  # the number of all names, which a layout's flags depend on
    noise_level: int | None = None  # of the image or embeddings
    embedding_row: int | None = None  # of clip_embeddings, from 0
    map: SourceFile | None = None  # of classes
    depth: SourceFile | None = None
    clip_embeddings: SourceFile | None = None
    noises: Noises | None = None  # of pictures of the task "imagine", which may be several in one file
    until: float | None = None  # of boxes with words in layout: the share of the steps in which they act
    image_guidance_scale: float | None = None  # of a model that edits pictures

    def __post_init__(self) -> None:
        for names, types, expected in _FIELD_TYPES:
            for name in names:
                _check(name, getattr(self, name), types, expected)
        for own in fields(self):
            source = getattr(self, own.name)
            if isinstance(source, SourceFile):
                _check(f"{own.name}.name", source.name, (str,), "text")
                _check(f"{own.name}.path", source.path, (str, _NONE), "text or nothing")
        for key, value in self.scheduler_settings.items():
            expected = "a number, text, true, false or nothing"
            _check("the name of a scheduler setting", key, (str,), "text")
            _check(f"scheduler_settings[{key!a:.40}]", value, (float, int, str, bool, _NONE), expected)
        for key, value in self.versions.items():
            _check("the name of a package", key, (str,), "text")
            _check(f"versions[{key!a:.40}]", value, (str,), "text")
        for key, value in self.class_names.items():
            _check("the name of a class", key, (str,), "text")
            _check(f"class_names[{key!a:.40}]", value, (int,), "a whole number")
        _check_layout(self.layout or ())
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, not {shown(self.task)}")


_NONE = type(None)
_FIELD_TYPES: list[tuple[tuple[str, ...], tuple[type, ...], str]] = [
    (("task", "prompt", "negative_prompt", "scheduler"), (str,), "text"),
    (
        ("prompt_syntax", "config", "prediction", "device", "dtype", "not_finite"),
        (str, _NONE),
        "text or nothing",
    ),
    (("seed", "steps", "width", "height"), (int,), "a whole number"),
    (
        ("clip_skip", "noise_level", "embedding_row", "class_count"),
        (int, _NONE),
        "a whole number or nothing",
    ),
    (("class_label",), (int, str, _NONE), "a whole number, text or nothing"),
    (("layout",), (tuple, _NONE), "a list of objects or nothing"),
    (("guidance_scale", "guidance_rescale"), (float, int), "a number"),
    (("strength", "until", "image_guidance_scale"), (float, int, _NONE), "a number or nothing"),
    (("ema",), (bool, _NONE), "true, false or nothing"),
    (("scheduler_settings", "versions", "class_names"), (dict,), "a mapping"),
    (("model",), (SourceFile,), "a file's name and checksum"),
    (("noises",), (Noises, _NONE), "the noises of pictures, or nothing"),
    (("autoencoder", *SOURCES), (SourceFile, _NONE), "a file's name and checksum, or nothing"),
    (("loras", "embeddings"), (tuple,), "a list of adapters"),
]


def _check(name: str, value: Any, types: tuple[type, ...], expected: str) -> None:
    """Raise ValueError for a value of the wrong type or out of range. A bool is not accepted as an int."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ValueError(f"{name} must be {expected}, not {shown(value)}")
    if name in RANGES and isinstance(value, int):
        low, high = RANGES[name]
        if not low <= value <= high:
            raise ValueError(f"{name} must be in {low}..{high}, not {shown(value)}")
    if isinstance(value, float | int) and not _is_finite(value):
        raise ValueError(f"{name} must be a finite number, not {shown(value)}")
    if isinstance(value, str):
        if len(value) > MAX_LETTERS:
            raise ValueError(f"{name} must have at most {MAX_LETTERS:,} letters, not {len(value):,}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{name} is not valid Unicode text: {value!a:.60}") from None


def _check_layout(layout: Sequence[Any]) -> None:
    if len(layout) > MAX_OBJECTS:
        raise ValueError(f"layout must have at most {MAX_OBJECTS} objects, not {len(layout):,}")
    for k, one in enumerate(layout):
        if not isinstance(one, dict) or not set(BOX) <= set(one) <= {*BOX, *FLAGS}:
            raise ValueError(f"layout[{k}] must be a mapping with {', '.join(BOX)}, not {shown(one)}")
        _check(f"layout[{k}]: label", one["label"], (int, str), "a whole number or text")
        for name in BOX[1:]:
            _check(f"layout[{k}]: {name}", one[name], (float, int), "a number")
        for name in set(one) - set(BOX):
            _check(f"layout[{k}]: {name}", one[name], (bool,), "true or false")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int beyond the range of a float
        return False


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a whole file, in hexadecimal. Takes one to two seconds per gigabyte."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def folder_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a folder: of the list of its files' checksums and names, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    for inner in sorted(entry for entry in Path(path).rglob("*") if entry.is_file()):
        digest.update(f"{file_sha256(inner)}  {inner.relative_to(path).as_posix()}\n".encode())
    return digest.hexdigest()


def is_checksum(text: str) -> bool:
    """Whether a text is a SHA-256 checksum, its first digits, or empty."""
    return re.fullmatch("[0-9a-f]{0,64}", text) is not None


def source_file(path: str | os.PathLike[str], *, bundled: bool = False) -> SourceFile:
    """The record of a file or of a model's folder. Raises OSError if it cannot be read."""
    path = os.fspath(path)
    checksum = folder_sha256(path) if os.path.isdir(path) else file_sha256(path)
    return SourceFile(os.path.basename(os.path.normpath(path)), checksum, None if bundled else path)


def without_paths(recipe: Recipe) -> Recipe:
    """The recipe without the paths of its files; their names and checksums stay."""

    def bare(file: SourceFile | None) -> Any:
        return file and replace(file, path=None)

    return replace(
        recipe,
        model=bare(recipe.model),
        autoencoder=bare(recipe.autoencoder),
        **{name: bare(getattr(recipe, name)) for name in SOURCES},
        loras=tuple(replace(lora, file=bare(lora.file)) for lora in recipe.loras),
        embeddings=tuple(replace(one, file=bare(one.file)) for one in recipe.embeddings),
        config=recipe.config and os.path.basename(recipe.config),
    )


# Fields that earlier versions of the package do not know: a recipe with any of them is rejected there.
_LATER = (
    *("not_finite", "class_label", "layout", "class_names", "class_count"),
    *("noise_level", "embedding_row", "map", "depth", "clip_embeddings", "noises"),
    *("until", "image_guidance_scale"),
)


def to_json(recipe: Recipe) -> str:
    """The recipe as ASCII JSON, the inverse of `from_json`."""
    data = asdict(recipe)
    for name in _LATER:
        if data[name] is None or data[name] == {}:
            del data[name]
    return json.dumps({"schema": SCHEMA, **data}, allow_nan=False)


def from_json(text: str) -> Recipe:
    """The recipe of a JSON text, the inverse of `to_json`. Raises ValueError for an invalid recipe."""
    data = parse_json(text, "the recipe")
    if not isinstance(data, dict):
        raise ValueError(f"the recipe must be a mapping, not {data!r:.60}")
    schema = data.pop("schema", None)
    if schema != SCHEMA:
        raise ValueError(f"expected a recipe of schema {SCHEMA}, got schema {schema!r:.20}")
    if data.get("task") == "restore":
        raise ValueError("the recipe of a restored photo, not of a drawing")
    for name in ("model", "autoencoder", *SOURCES):
        if isinstance(data.get(name), dict):
            data[name] = read_source(name, data[name])
    for name in ("loras", "embeddings"):
        if isinstance(data.get(name), list):
            data[name] = tuple(_adapter(name, entry) for entry in data[name])
    if isinstance(data.get("noises"), dict):
        own = data["noises"]
        data["noises"] = read_built(Noises, {**own, "mixtures": mixtures_of(own.get("mixtures"))}, "noises")
    if isinstance(data.get("layout"), list):
        data["layout"] = tuple(data["layout"])
    return read_built(Recipe, data, "the recipe")


def read_source(name: str, data: dict[str, Any]) -> SourceFile:
    """The record of a file from a recipe's JSON. Raises ValueError, naming the field, for an invalid one."""
    source: SourceFile = read_built(SourceFile, data, f"the recipe's {name}")
    for key in ("name", "sha256"):
        _check(f"{name}.{key}", getattr(source, key), (str,), "text")
    if not is_checksum(source.sha256):
        raise ValueError(f"{name}.sha256 must be up to 64 hexadecimal digits, not {source.sha256!r:.60}")
    _check(f"{name}.path", source.path, (str, _NONE), "text or nothing")
    return source


def _adapter(name: str, data: Any) -> AdapterFile:
    if not isinstance(data, dict) or not isinstance(data.get("file"), dict):
        raise ValueError(f"the recipe's {name} must be a list of adapters with a file each, not {data!r:.60}")
    adapter: AdapterFile = read_built(AdapterFile, {**data, "file": read_source(name, data["file"])}, name)
    _check(f"{name}.scale", adapter.scale, (float, int), "a number")
    _check(f"{name}.name", adapter.name, (str, _NONE), "text or nothing")
    return adapter


def read_built(cls: Any, data: dict[str, Any], what: str) -> Any:
    """A dataclass from its fields. Raises ValueError for unknown or missing ones."""
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{what} has unknown entries: {', '.join(map(ascii, unknown)):.80}")
    try:
        return cls(**data)
    except TypeError:
        missing = [name for name in known if name not in data]
        raise ValueError(f"{what} lacks {', '.join(missing)}") from None
