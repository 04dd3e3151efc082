"""The fields of a recipe, and their JSON. Reading the JSON of a recipe gives an equal recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal

from ldm_core.recipe.checks import MAX_OBJECTS, NONE, check, read_built
from ldm_core.recipe.controls import MAX_CONTROLS, ControlFile, read_control
from ldm_core.recipe.files import (
    AdapterFile,
    SourceFile,
    check_file,
    read_adapter,
    read_source,
    without_path,
)
from ldm_core.recipe.noises import Noises, mixtures_of
from ldm_core.support.json_text import parse_json
from ldm_core.support.printable import shown

SCHEMA = 1

TaskName = Literal["txt2img", "img2img", "inpaint", "sample", "upscale", "imagine"]
TASKS = ("txt2img", "img2img", "inpaint", "sample", "upscale", "imagine")
SOURCES = ("image", "mask", "map", "depth", "clip_embeddings")  # the fields of input files
FILES = ("model", "autoencoder", "ip_adapter", "clip", *SOURCES)  # the fields of one file
BOX = ("label", "x", "y", "width", "height")  # of an object of a layout
FLAGS = ("group", "occluded", "depiction", "inside")


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
    controls: tuple[ControlFile, ...] = ()
    ip_adapter: SourceFile | None = None
    clip: SourceFile | None = None  # the image encoder of ip_adapter, or of a style adapter in controls
    image_prompts: tuple[SourceFile, ...] = ()
    image_scale: float | None = None  # of image_prompts

    def __post_init__(self) -> None:
        for names, types, expected in _FIELD_TYPES:
            for name in names:
                check(name, getattr(self, name), types, expected)
        for own in fields(self):
            source = getattr(self, own.name)
            if isinstance(source, SourceFile):
                check_file(own.name, source)
        for key, value in self.scheduler_settings.items():
            expected = "a number, text, true, false or nothing"
            check("the name of a scheduler setting", key, (str,), "text")
            check(f"scheduler_settings[{key!a:.40}]", value, (float, int, str, bool, NONE), expected)
        for key, value in self.versions.items():
            check("the name of a package", key, (str,), "text")
            check(f"versions[{key!a:.40}]", value, (str,), "text")
        for key, value in self.class_names.items():
            check("the name of a class", key, (str,), "text")
            check(f"class_names[{key!a:.40}]", value, (int,), "a whole number")
        _check_layout(self.layout or ())
        _check_controls(self)
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, not {shown(self.task)}")


_FIELD_TYPES: list[tuple[tuple[str, ...], tuple[type, ...], str]] = [
    (("task", "prompt", "negative_prompt", "scheduler"), (str,), "text"),
    (
        ("prompt_syntax", "config", "prediction", "device", "dtype", "not_finite"),
        (str, NONE),
        "text or nothing",
    ),
    (("seed", "steps", "width", "height"), (int,), "a whole number"),
    (
        ("clip_skip", "noise_level", "embedding_row", "class_count"),
        (int, NONE),
        "a whole number or nothing",
    ),
    (("class_label",), (int, str, NONE), "a whole number, text or nothing"),
    (("layout",), (tuple, NONE), "a list of objects or nothing"),
    (("guidance_scale", "guidance_rescale"), (float, int), "a number"),
    (
        ("strength", "until", "image_guidance_scale", "image_scale"),
        (float, int, NONE),
        "a number or nothing",
    ),
    (("ema",), (bool, NONE), "true, false or nothing"),
    (("scheduler_settings", "versions", "class_names"), (dict,), "a mapping"),
    (("model",), (SourceFile,), "a file's name and checksum"),
    (("noises",), (Noises, NONE), "the noises of pictures, or nothing"),
    (FILES[1:], (SourceFile, NONE), "a file's name and checksum, or nothing"),
    (("loras", "embeddings"), (tuple,), "a list of adapters"),
    (("controls", "image_prompts"), (tuple,), "a list"),
]


def _check_layout(layout: Sequence[Any]) -> None:
    if len(layout) > MAX_OBJECTS:
        raise ValueError(f"layout must have at most {MAX_OBJECTS} objects, not {len(layout):,}")
    for k, one in enumerate(layout):
        if not isinstance(one, dict) or not set(BOX) <= set(one) <= {*BOX, *FLAGS}:
            raise ValueError(f"layout[{k}] must be a mapping with {', '.join(BOX)}, not {shown(one)}")
        check(f"layout[{k}]: label", one["label"], (int, str), "a whole number or text")
        for name in BOX[1:]:
            check(f"layout[{k}]: {name}", one[name], (float, int), "a number")
        for name in set(one) - set(BOX):
            check(f"layout[{k}]: {name}", one[name], (bool,), "true or false")


def _check_controls(recipe: Recipe) -> None:
    file = "a file's name and checksum"
    kinds: tuple[Any, ...] = (("controls", ControlFile, "a control"), ("image_prompts", SourceFile, file))
    for name, kind, expected in kinds:
        given = getattr(recipe, name)
        if len(given) > MAX_CONTROLS:
            raise ValueError(f"{name} must have at most {MAX_CONTROLS} entries, not {len(given):,}")
        for k, one in enumerate(given):
            check(f"{name}[{k}]", one, (kind,), expected)
            if isinstance(one, SourceFile):
                check_file(f"{name}[{k}]", one)


def without_paths(recipe: Recipe) -> Recipe:
    """The recipe without the paths of its files; their names and checksums stay."""
    bare = without_path
    controls = (replace(one, network=bare(one.network), hint=bare(one.hint)) for one in recipe.controls)
    return replace(
        recipe,
        **{name: bare(getattr(recipe, name)) for name in FILES},
        loras=tuple(replace(lora, file=bare(lora.file)) for lora in recipe.loras),
        embeddings=tuple(replace(one, file=bare(one.file)) for one in recipe.embeddings),
        controls=tuple(controls),
        image_prompts=tuple(map(bare, recipe.image_prompts)),
        config=recipe.config and os.path.basename(recipe.config),
    )


# Fields that earlier versions of the package do not know: a recipe with any of them is rejected there.
_LATER = (
    *("not_finite", "class_label", "layout", "class_names", "class_count"),
    *("noise_level", "embedding_row", "map", "depth", "clip_embeddings", "noises"),
    *("until", "image_guidance_scale", "controls", "ip_adapter", "clip", "image_prompts", "image_scale"),
)


def to_json(recipe: Recipe) -> str:
    """The recipe as ASCII JSON, the inverse of `from_json`."""
    data = asdict(recipe)
    for name in _LATER:
        if data[name] is None or data[name] == {} or (data[name] == () and name != "layout"):
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
    for name in FILES:
        if isinstance(data.get(name), dict):
            data[name] = read_source(name, data[name])
    for name in ("loras", "embeddings"):
        if isinstance(data.get(name), list):
            data[name] = tuple(read_adapter(name, entry) for entry in data[name])
    for name, read in (("controls", read_control), ("image_prompts", partial(read_source, "image_prompts"))):
        if isinstance(data.get(name), list):
            data[name] = tuple(read(one) if isinstance(one, dict) else one for one in data[name])
    if isinstance(data.get("noises"), dict):
        own = data["noises"]
        data["noises"] = read_built(Noises, {**own, "mixtures": mixtures_of(own.get("mixtures"))}, "noises")
    if isinstance(data.get("layout"), list):
        data["layout"] = tuple(data["layout"])
    return read_built(Recipe, data, "the recipe")
