"""A picture's recipe: all that is needed to draw it again, kept inside its PNG file.

Two text chunks of the PNG format (ISO/IEC 15948, section 11.3.3) hold it:

    ldm_core     JSON, complete and exact; reading it back gives an equal recipe
    parameters   the text that AUTOMATIC1111's web UI began, and that picture browsers and model sites show:
                 the prompt, "Negative prompt: …", and one line of "Name: value" pairs

The second has no place for everything (a scheduler's settings, the input pictures' checksums), and a prompt
that looks like one of its own lines confuses it, so it is read only where the first is missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

SCHEMA = 1
JSON_CHUNK, TEXT_CHUNK = "ldm_core", "parameters"
NEGATIVE = "Negative prompt:"
HASH_DIGITS = 10  # how much of a file's sha256 the web UIs show as "Model hash"
HASH_BLOCK = 2**22  # bytes

TaskName = Literal["txt2img", "img2img", "inpaint"]
TASKS = ("txt2img", "img2img", "inpaint")

# The class and settings behind each sampler name of the parameters text; other names are kept as they are.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIM", {}),
    "PLMS": ("PNDM", {"warmup": "plms"}),
    "PNDM": ("PNDM", {"warmup": "runge_kutta"}),
    "DDPM": ("DDPM", {}),
}


@dataclass(frozen=True)
class SourceFile:
    """A file that a picture was made from.

    sha256: of the whole file, in hexadecimal; other tools give its first digits only, or none ("").
    path: where it was, as it was given; None for the bundled model, or where nothing is known.
    """

    name: str
    sha256: str
    path: str | None = None

    @property
    def short_hash(self) -> str:
        return self.sha256[:HASH_DIGITS]

    def same_as(self, other: SourceFile) -> bool:
        """Whether both are the same file, as far as the checksums reach. Without a checksum: no."""
        digits = min(len(self.sha256), len(other.sha256))
        return digits > 0 and self.sha256[:digits] == other.sha256[:digits]


@dataclass(frozen=True)
class Recipe:
    """How one picture was drawn. `Sampler.txt2img` explains the fields that bear its parameters' names.

    Raises ValueError, naming the field, for a value of the wrong type, a number that is not finite, or text
    that is not valid Unicode (half of a surrogate pair), which no PNG can hold.
    """

    task: TaskName
    prompt: str
    seed: int  # of this picture alone, whatever the batch it was drawn in
    steps: int
    width: int  # pixels
    height: int
    guidance_scale: float
    scheduler: str  # a class of ldm_core.schedulers, or another tool's name for one that is not known here
    model: SourceFile
    negative_prompt: str = ""
    scheduler_settings: dict[str, Any] = field(default_factory=dict)
    guidance_rescale: float = 0.0
    strength: float | None = None  # None for txt2img
    clip_skip: int | None = None  # None: the model's own
    config: str | None = None  # a preset or a YAML file, where the model's own was not used
    ema: bool = False
    image: SourceFile | None = None
    mask: SourceFile | None = None
    device: str | None = None
    dtype: str | None = None  # "float32", …
    versions: dict[str, str] = field(default_factory=dict)  # of the packages that drew it

    def __post_init__(self) -> None:
        for names, types, expected in _FIELD_TYPES:
            for name in names:
                _check(name, getattr(self, name), types, expected)
        if self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, not {self.task!r}")


_NONE = type(None)
_FIELD_TYPES: list[tuple[tuple[str, ...], tuple[type, ...], str]] = [
    (("task", "prompt", "negative_prompt", "scheduler"), (str,), "text"),
    (("config", "device", "dtype"), (str, _NONE), "text or nothing"),
    (("seed", "steps", "width", "height"), (int,), "a whole number"),
    (("clip_skip",), (int, _NONE), "a whole number or nothing"),
    (("guidance_scale", "guidance_rescale"), (float, int), "a number"),
    (("strength",), (float, int, _NONE), "a number or nothing"),
    (("ema",), (bool,), "true or false"),
    (("scheduler_settings", "versions"), (dict,), "a mapping"),
    (("model",), (SourceFile,), "a file's name and checksum"),
    (("image", "mask"), (SourceFile, _NONE), "a file's name and checksum, or nothing"),
]


def _check(name: str, value: Any, types: tuple[type, ...], expected: str) -> None:
    """A bool is an int to Python, but not to a recipe."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ValueError(f"{name} must be {expected}, not {value!r:.60}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value}")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{name} is not valid Unicode text: {value!a:.60}") from None


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The checksum of a whole file, in hexadecimal: one to two seconds per gigabyte."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def folder_sha256(path: str | os.PathLike[str]) -> str:
    """The checksum of the listing of a folder's checksums and names, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    for inner in sorted(entry for entry in Path(path).rglob("*") if entry.is_file()):
        digest.update(f"{file_sha256(inner)}  {inner.relative_to(path).as_posix()}\n".encode())
    return digest.hexdigest()


def source_file(path: str | os.PathLike[str], *, bundled: bool = False) -> SourceFile:
    """The record of a file, or of a model's folder, that is there. Raises OSError if it cannot be read."""
    path = os.fspath(path)
    checksum = folder_sha256(path) if os.path.isdir(path) else file_sha256(path)
    return SourceFile(os.path.basename(os.path.normpath(path)), checksum, None if bundled else path)


def to_json(recipe: Recipe) -> str:
    """The recipe as JSON in ASCII; `from_json` gives an equal one back."""
    return json.dumps({"schema": SCHEMA, **asdict(recipe)}, allow_nan=False)


def from_json(text: str) -> Recipe:
    """The inverse of `to_json`. Raises ValueError saying what is wrong."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the recipe is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"the recipe must be a mapping, not {data!r:.60}")
    schema = data.pop("schema", None)
    if schema != SCHEMA:
        raise ValueError(f"the recipe is of schema {schema!r:.20}, and this version reads {SCHEMA}")
    for name in ("model", "image", "mask"):
        if isinstance(data.get(name), dict):
            data[name] = _built(SourceFile, data[name], f"the recipe's {name}")
            for key in ("name", "sha256"):
                _check(f"{name}.{key}", getattr(data[name], key), (str,), "text")
            _check(f"{name}.path", data[name].path, (str, _NONE), "text or nothing")
    recipe: Recipe = _built(Recipe, data, "the recipe")
    return recipe


def _built(cls: Any, data: dict[str, Any], what: str) -> Any:
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{what} has unknown entries: {', '.join(unknown):.80}")
    try:
        return cls(**data)
    except TypeError:
        missing = [name for name in known if name not in data]
        raise ValueError(f"{what} lacks {', '.join(missing)}") from None


def to_parameters_text(recipe: Recipe) -> str:
    """The recipe as other tools show it; at most three parts: prompt, negative prompt, settings."""
    settings = {
        "Steps": recipe.steps,
        "Sampler": _sampler_name(recipe),
        "CFG scale": _shortest(recipe.guidance_scale),
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": recipe.model.short_hash,
        "Model": Path(recipe.model.name).stem,
    }
    if recipe.strength is not None:
        settings["Denoising strength"] = _shortest(recipe.strength)
    if recipe.clip_skip is not None:
        settings["Clip skip"] = recipe.clip_skip + 1  # the web UIs count from 1
    if recipe.scheduler_settings.get("eta"):
        settings["Eta"] = _shortest(recipe.scheduler_settings["eta"])
    if "ldm_core" in recipe.versions:
        settings["Version"] = f"ldm_core {recipe.versions['ldm_core']}"
    lines = [recipe.prompt]
    if recipe.negative_prompt:
        lines.append(f"{NEGATIVE} {recipe.negative_prompt}")
    lines.append(
        ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value != "")
    )
    return "\n".join(lines)


def from_parameters_text(text: str) -> Recipe:
    """What can be told from the text of another tool. Raises ValueError where the settings are missing.

    The last line holds the settings; before it, everything from the first "Negative prompt:" at a line's
    start is the negative prompt. A sampler that is not known here keeps its name.
    """
    *lines, last = text.strip().split("\n")
    settings = dict(_pairs(last))
    starts = [i for i, line in enumerate(lines) if line.startswith(NEGATIVE)]
    cut = starts[0] if starts else len(lines)
    negative = "\n".join(lines[cut:]).removeprefix(NEGATIVE)
    missing = [name for name in ("Steps", "Sampler", "Seed", "Size") if name not in settings]
    if missing:
        raise ValueError(f"the parameters text has no {', '.join(missing)}")
    size = re.fullmatch(r"(\d+)x(\d+)", settings["Size"])
    if size is None:
        raise ValueError(
            f"expected a Size of WIDTHxHEIGHT in the parameters text, not {settings['Size']!r:.30}"
        )
    scheduler, options = SAMPLERS.get(settings["Sampler"], (settings["Sampler"], {}))
    if "Eta" in settings and scheduler == "DDIM":
        options = {"eta": _number(settings, "Eta")}
    strength = _number(settings, "Denoising strength") if "Denoising strength" in settings else None
    return Recipe(
        task="txt2img" if strength is None else "img2img",
        prompt="\n".join(lines[:cut]).strip(),
        negative_prompt=negative.strip(),
        seed=_whole(settings, "Seed"),
        steps=_whole(settings, "Steps"),
        width=int(size[1]),
        height=int(size[2]),
        guidance_scale=_number(settings, "CFG scale") if "CFG scale" in settings else 7.0,
        scheduler=scheduler,
        scheduler_settings=dict(options),
        strength=strength,
        clip_skip=_whole(settings, "Clip skip") - 1 if "Clip skip" in settings else None,
        model=SourceFile(settings.get("Model", ""), settings.get("Model hash", "").lower()),
    )


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


def _sampler_name(recipe: Recipe) -> str:
    for name, (scheduler, settings) in SAMPLERS.items():
        if scheduler == recipe.scheduler and settings.items() <= recipe.scheduler_settings.items():
            return name
    return recipe.scheduler


def _shortest(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(number)


def _quoted(value: str) -> str:
    """A value that holds what separates values, as a JSON string."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:"\n') else value


def _pairs(line: str) -> Iterable[tuple[str, str]]:
    """The "Name: value" pairs of a settings line, which commas separate wherever they are not in quotes."""
    for pair in re.findall(r'(?:"(?:\\.|[^"\\])*"|[^",])+', line):
        name, _, value = (part.strip() for part in pair.partition(":"))
        if value.startswith('"'):
            try:
                value = str(json.loads(value))
            except ValueError:
                value = value.strip('"')
        yield name, value


def _number(settings: dict[str, str], name: str) -> float:
    try:
        return float(settings[name])
    except ValueError:
        raise ValueError(
            f"expected a number as {name} in the parameters text, not {settings[name]!r:.30}"
        ) from None


def _whole(settings: dict[str, str], name: str) -> int:
    try:
        return int(settings[name])
    except ValueError:
        raise ValueError(
            f"expected a whole number as {name} in the parameters text, not {settings[name]!r:.30}"
        ) from None
