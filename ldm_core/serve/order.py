"""An order: what a user of the server asks for, and the bounds that it is checked against.

Everything here comes from strangers. `complete` fills in the defaults of the model and raises `BadOrder`, in
words that a user understands, for anything out of bounds; after it, nothing but the drawing is left to do.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from ldm_core.images import open_picture, to_grey, to_rgb
from ldm_core.recipe import SourceFile
from ldm_core.schedulers.named import SCHEDULERS
from ldm_core.support.limits import is_number, is_whole
from ldm_core.support.printable import shown

if TYPE_CHECKING:
    from PIL.Image import Image

Task = Literal["txt2img", "img2img", "inpaint"]
MAX_SEED = 2**32 - 1
SMALLEST_STRENGTH = 0.01
STRENGTHS: Mapping[Task, float] = {"txt2img": 1.0, "img2img": 0.75, "inpaint": 1.0}


class BadOrder(ValueError):
    """An order that cannot be drawn. field: the name of the field that is wrong, if it is one."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class TooBusy(BadOrder):
    """The queue is full."""


@dataclass(frozen=True)
class Limits:
    """The largest values that a server accepts.

    letters: of a prompt. pixels: width times height of a picture. pictures: of one order. waiting: orders in
    the queue. upload_bytes, upload_pixels: of a picture that is given.
    """

    letters: int = 2000
    steps: int = 150
    guidance_scale: float = 50.0
    pixels: int = 2**20
    pictures: int = 4
    waiting: int = 8
    upload_bytes: int = 20 * 2**20
    upload_pixels: int = 2**24


@dataclass(frozen=True)
class ModelInfo:
    """What users may know of a model.

    size: of its training pictures, in pixels. multiple: widths and heights are multiples of it.
    most_steps: the timesteps of its noise schedule. steps, guidance_scale: the defaults.
    """

    name: str
    size: int
    multiple: int
    most_steps: int
    steps: int
    guidance_scale: float


@dataclass(frozen=True)
class Upload:
    """A picture that a user gives, decoded and bounded. file: its record in recipes."""

    image: Image
    file: SourceFile


@dataclass(frozen=True)
class Order:
    """What to draw. None and "" stand for the defaults: the model's, the server's, and a random seed.

    image: to redraw, or with a mask to repaint where the mask is white. Both are cropped around their centre
        to the proportions of width and height, and scaled.
    watched: whether to show the picture after every step, and to make the strip and the words' maps.
    """

    prompt: str
    negative_prompt: str = ""
    model: str = ""
    task: Task = "txt2img"
    image: Upload | None = None
    mask: Upload | None = None
    strength: float | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str = ""
    width: int | None = None
    height: int | None = None
    num_images: int = 1
    watched: bool = True


def complete(order: Order, models: Mapping[str, ModelInfo], limits: Limits) -> Order:
    """The order with all defaults filled in. Raises BadOrder for anything that the limits do not allow."""
    for field, name in (("prompt", "prompt"), ("negative_prompt", "negative prompt")):
        _check_text(getattr(order, field), name, field, limits.letters)
    if not order.prompt.strip():
        raise BadOrder("Write a prompt first: a few words that describe the picture.", "prompt")
    model = models.get(order.model or next(iter(models))) if isinstance(order.model, str) else None
    if model is None:
        raise BadOrder(f"There is no model {shown(order.model)}. Models: {', '.join(models)}.", "model")
    if not isinstance(order.scheduler, str) or order.scheduler not in SCHEDULERS:
        expected = ", ".join(SCHEDULERS)
        raise BadOrder(
            f"There is no scheduler {shown(order.scheduler)}. Schedulers: {expected}.", "scheduler"
        )
    if not isinstance(order.task, str) or order.task not in STRENGTHS:
        raise BadOrder(f"There is no task {shown(order.task)}. Tasks: {', '.join(STRENGTHS)}.", "task")
    order = replace(
        order,
        model=model.name,
        steps=model.steps if order.steps is None else order.steps,
        guidance_scale=model.guidance_scale if order.guidance_scale is None else order.guidance_scale,
        strength=STRENGTHS[order.task] if order.strength is None else order.strength,
        width=model.size if order.width is None else order.width,
        height=model.size if order.height is None else order.height,
    )
    _check_numbers(order, model, limits)
    _check_size(order, model, limits)
    _check_pictures(order)
    return replace(order, seed=secrets.randbelow(MAX_SEED + 1) if order.seed is None else order.seed)


def _check_text(text: Any, name: str, field: str, letters: int) -> None:
    if not isinstance(text, str):
        raise BadOrder(f"The {name} must be text, not {shown(text)}.", field)
    if len(text) > letters:
        raise BadOrder(f"The {name} has {len(text):,} letters; at most {letters:,} are allowed.", field)
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text):
        raise BadOrder(f"The {name} has characters that are no text.", field)


def _check_numbers(order: Order, model: ModelInfo, limits: Limits) -> None:
    most_steps = min(limits.steps, model.most_steps)
    for field, name, value, low, high in (
        ("steps", "number of steps", order.steps, 1, most_steps),
        ("num_images", "number of pictures", order.num_images, 1, limits.pictures),
        ("seed", "seed", 0 if order.seed is None else order.seed, 0, MAX_SEED),
    ):
        if not is_whole(value, low, high):
            expected = f"a whole number from {low} to {high}"
            raise BadOrder(f"The {name} must be {expected}, not {shown(value)}.", field)
    for field, name, number, least, most in (
        ("guidance_scale", "guidance", order.guidance_scale, 0.0, limits.guidance_scale),
        ("strength", "strength", order.strength, SMALLEST_STRENGTH, 1.0),
    ):
        if not is_number(number) or not least <= number <= most:  # type: ignore[operator]
            expected = f"a number from {least:g} to {most:g}"
            raise BadOrder(f"The {name} must be {expected}, not {shown(number)}.", field)


def _check_size(order: Order, model: ModelInfo, limits: Limits) -> None:
    unit, width, height = model.multiple, order.width, order.height
    for name, side in (("width", width), ("height", height)):
        if not is_whole(side, unit, limits.pixels) or int(side or 0) % unit:
            raise BadOrder(
                f"The {name} must be a multiple of {unit} pixels with {model.name}, not {shown(side)}.",
                "size",
            )
    pixels = int(width or 0) * int(height or 0)
    if pixels > limits.pixels:
        raise BadOrder(
            f"{width}×{height} has {pixels:,} pixels; at most {limits.pixels:,} are allowed.", "size"
        )


def _check_pictures(order: Order) -> None:
    if order.task != "txt2img" and order.image is None:
        verb = "redraw" if order.task == "img2img" else "repaint"
        raise BadOrder(f"Give a picture to {verb} first.", "image")
    if order.task != "inpaint":
        return
    if order.mask is None or order.mask.image.getbbox() is None:
        raise BadOrder("Paint over the part of the picture that is to change first.", "mask")
    if order.image is not None and order.mask.image.size != order.image.image.size:
        raise BadOrder("The mask and the picture must have the same size.", "mask")


def open_upload(data: bytes, name: str, limits: Limits, *, mask: bool = False) -> Upload:
    """Decode a picture that a user gives: RGB, or for a mask 8-bit grey.

    Only `ldm_core.images.FORMATS` are read, and the size is checked before anything is decoded. name: as the
    user calls it, which is recorded without its folder. Raises BadOrder for any other data.
    """
    what = "mask" if mask else "picture"
    if len(data) > limits.upload_bytes:
        raise BadOrder(f"The {what} has more than {limits.upload_bytes // 2**20} MiB.", "image")
    try:
        image = open_picture(data, max_pixels=limits.upload_pixels)
        image = to_grey(image) if mask else to_rgb(image)
    except ValueError as error:
        raise BadOrder(f"The {what} cannot be read: {error}.", "image") from None
    return Upload(image, record(data, name))


def record(data: bytes, name: str) -> SourceFile:
    """The record of given bytes in recipes."""
    plain = os.path.basename(name.replace("\\", "/"))
    plain = "".join(letter for letter in plain if letter.isprintable())[:100]
    return SourceFile(plain or "picture", hashlib.sha256(data).hexdigest())
