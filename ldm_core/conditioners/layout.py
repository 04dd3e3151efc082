"""Layouts as a Condition: labelled boxes as a sequence of tokens, and a transformer over it.

Latent diffusion (arXiv:2112.10752, sections 4.3.1 and E.2.1). The sequence is that of `coordinates_bbox`, the
conditional builder of taming-transformers, for N = 3 n + 2 tokens of a vocabulary of V:

    an object   (class, point of its upper left corner, point of its lower right corner)
    no object   (V - 1, V - 1, V - 1), up to n objects
    the crop    (point of its upper left corner, point of its lower right corner), at the end

A point is one token on a grid of G = floor(sqrt(V)) rows and columns: round(y (G - 1)) G + round(x (G - 1)).
The published model has V = 8192, G = 90 and N = 92, so n = 30. Its classes are not published: their numbers
come from the user. It was trained without an empty layout, so there is no guidance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.conditioners.text import parameters
from ldm_core.protocols import TextEncoder
from ldm_core.support.printable import few, shown

Rectangle = tuple[float, float, float, float]  # x, y, width, height, relative to the whole picture
Names = Sequence[str] | Mapping[str, int]

WHOLE: Rectangle = (0.0, 0.0, 1.0, 1.0)
ROUNDING = 1e-6  # by which a side computed from pixels may exceed the picture's
FLAGS = ("group", "occluded", "depiction", "inside")  # in the order of their bits


@dataclass(frozen=True)
class Box:
    """One object of a layout.

    label: a class number or name. x, y: the upper left corner; x to the right, y down. All four are fractions
    of the whole picture's width and height; a box may reach over the picture's edges.
    group, occluded, depiction, inside: OpenImages' flags, whose use requires the number of classes.
    """

    label: int | str
    x: float
    y: float
    width: float
    height: float
    group: bool = False
    occluded: bool = False
    depiction: bool = False
    inside: bool = False

    @property
    def rectangle(self) -> Rectangle:
        """(x, y, width, height), each in [0, 1]."""
        return self.x, self.y, self.width, self.height


@dataclass(frozen=True)
class Layout:
    """Layouts as a Condition with context (B, N, width).

    The inputs are one or several layouts, each a list of objects: a `Box`, the same as a mapping, or
    (label, x, y, width, height). The order of the objects has no meaning. `[[]]` is one empty layout.

    encoder: token ids (B, N) to (B, N, width), such as a `BERTEncoder`.
    classes: the number of classes, which limits the labels; None: unknown, or the length of a list of names.
    names: the classes' names in the order of their numbers, or a mapping from names to numbers.
    crop: the part of the picture to show, (x, y, width, height); objects outside are dropped.
    flip: mirror the objects and the crop from left to right.
    vocab_size, context_length: V and N.

    Raises ValueError for values that do not fit each other.
    """

    encoder: TextEncoder
    classes: int | None = None
    names: Names | None = None
    crop: Rectangle | None = None
    flip: bool = False
    vocab_size: int = 8192
    context_length: int = 92

    unconditional: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not isinstance(self.vocab_size, int) or self.vocab_size < 5 or self.none < self.grid**2:
            raise ValueError(
                f"vocab_size must be an int of at least 5 that is no square, not {shown(self.vocab_size)}"
            )
        length = self.context_length
        if not isinstance(length, int) or length < 5 or length % 3 != 2:
            raise ValueError(
                f"context_length must be 3 for each object and 2 for the crop, as 92, not {shown(length)}"
            )
        if self.classes is not None and not (_is_whole(self.classes) and 0 < self.classes <= self.none):
            raise ValueError(f"classes must be an int in 1..{self.none}, not {shown(self.classes)}")
        for name, number in self._numbers.items():
            if not 0 <= number < self._labels:
                raise ValueError(
                    f"{shown(name)} must have a number in 0..{self._labels - 1}, not {shown(number)}"
                )
        self._crop()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks of the conditioner, by name. They move and are saved with the model."""
        return {"conditioner": self.encoder} if isinstance(self.encoder, nn.Module) else {}

    @property
    def grid(self) -> int:
        """The rows and columns of points."""
        return math.isqrt(self.vocab_size)

    @property
    def none(self) -> int:
        """The token of a missing object."""
        return self.vocab_size - 1

    @property
    def limit(self) -> int:
        """The largest number of objects."""
        return (self.context_length - 2) // 3

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return class_numbers(self.names)

    @property
    def _classes(self) -> int | None:
        listed = self.names is not None and not isinstance(self.names, Mapping)
        return len(self._numbers) if self.classes is None and listed else self.classes

    @property
    def _labels(self) -> int:
        return self.none if self._classes is None else self._classes

    def count(self, inputs: Any, name: str = "inputs") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        return len(self._rows(inputs, name))

    def __call__(self, inputs: Any) -> Condition:
        """Encode one row per layout, on the device of an encoder that is a module."""
        tokens = self.tokens(inputs)
        weight = next(iter(parameters(self.encoder)), None)
        return Condition(context=self.encoder(tokens if weight is None else tokens.to(weight.device)))

    def tokens(self, layouts: Any) -> Tensor:
        """The token sequences of one or B layouts, LongTensor (B, N).

        A corner outside the picture moves to its edge; as in training, a box that begins left of the picture
        or above it keeps its width or height.

        Raises ValueError for an unknown label, numbers that are not finite, a box without area, larger than
        the picture or entirely outside of it, and for more objects within the crop than the sequence holds.
        """
        return torch.tensor(self._rows(layouts, "layouts"), dtype=torch.long)

    def crop_tokens(self, part: Rectangle = WHOLE) -> tuple[int, int]:
        """The last two tokens, of this part of the crop."""
        (x, y, width, height), (left, top, across, down) = self._crop(), part
        return self._corners((x + left * width, y + top * height, across * width, down * height))

    def boxes_of(self, tokens: Tensor) -> list[list[Box]]:
        """The objects of token sequences (B, N), with class numbers; the inverse of `tokens` up to rounding.

        `tokens` of the result, without crop and flip, gives the same tokens: a side whose ends are the same
        point of the grid gets a quarter of a step. Raises ValueError for sequences that are not of layouts.
        """
        rows = tokens.tolist() if isinstance(tokens, Tensor) and not tokens.is_floating_point() else None
        if rows is None or tokens.ndim != 2 or tokens.shape[1] != self.context_length:
            found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(f"expected tokens as a LongTensor (B, {self.context_length}), got {found}")
        return [[box for k in range(self.limit) for box in self._box(row[3 * k : 3 * k + 3])] for row in rows]

    def _box(self, triple: list[int]) -> list[Box]:
        """The object of three tokens, if there is one."""
        if triple == [self.none] * 3:
            return []
        what, first, last = triple
        if not 0 <= what < self.none or not all(0 <= point < self.grid**2 for point in (first, last)):
            raise ValueError(
                f"expected a class in 0..{self.none - 1} and points in 0..{self.grid**2 - 1}, or {self.none} "
                f"three times, got {triple}"
            )
        (y0, x0), (y1, x1) = divmod(first, self.grid), divmod(last, self.grid)
        if x1 < x0 or y1 < y0:
            raise ValueError(f"expected the upper left corner before the lower right, got {triple}")
        (x, width), (y, height) = self._side(x0, x1), self._side(y0, y1)
        bits, label = (0, what) if self._classes is None else divmod(what, self._classes)
        if bits >= 2 ** len(FLAGS):
            raise ValueError(f"expected a class in 0..{self._classes} with {len(FLAGS)} flags, got {what}")
        flags = {flag: bool(bits >> k & 1) for k, flag in enumerate(FLAGS)}
        return [Box(label, x, y, width, height, **flags)]

    def _side(self, start: int, end: int) -> tuple[float, float]:
        """(start, length) of a box on one axis, from rows or columns of the grid."""
        length, steps = end - start, self.grid - 1
        return (start / steps, length / steps) if length else ((start - 1 / 8) / steps, 1 / (4 * steps))

    def _rows(self, inputs: Any, name: str) -> list[list[int]]:
        return [
            [*self._objects(objects, f"{name}, layout {k}"), *self.crop_tokens()]
            for k, objects in enumerate(_as_layouts(inputs, name))
        ]

    def _objects(self, objects: Sequence[Any], name: str) -> list[int]:
        """The tokens of all objects, and of missing ones after them."""
        shows = WHOLE if self.crop is None else clamped(self.crop)
        row: list[int] = []
        for k, one in enumerate(objects):
            try:
                box = as_box(one)
                what, rectangle = self._representation(box), clamped(box.rectangle)
            except ValueError as error:
                raise ValueError(f"{name}, object {k}: {error}") from None
            if _overlap(box.rectangle, shows):
                row += (what, *self._corners(self._flipped(rectangle)))
        kept = len(row) // 3
        if kept > self.limit:
            raise ValueError(
                f"{name}: too many boxes for the sequence: expected at most {self.limit}, got {kept}"
            )
        return row + [self.none] * (3 * (self.limit - kept))

    def _representation(self, box: Box) -> int:
        """The token of an object's class and flags."""
        number = self._number(box.label)
        flags = [getattr(box, flag) for flag in FLAGS]
        if not all(isinstance(flag, bool) for flag in flags):
            raise ValueError(f"expected {', '.join(FLAGS)} to be true or false, got {shown(flags)}")
        if not any(flags):
            return number
        if self._classes is None:
            raise ValueError(f"{', '.join(FLAGS)} require the number of classes; it is None")
        token = number + self._classes * sum(flag << k for k, flag in enumerate(flags))
        if token >= self.none:
            raise ValueError(
                f"class {number} of {self._classes} with these flags is token {token}, but only "
                f"0..{self.none - 1} stand for classes"
            )
        return token

    def _number(self, label: Any) -> int:
        if isinstance(label, str):
            if not self._numbers:
                raise ValueError(f"the label {shown(label)} requires names; pass a class number or names")
            if label not in self._numbers:
                known = few([shown(name) for name in self._numbers])
                raise ValueError(f"unknown label {shown(label)}; expected one of {known}")
            return self._numbers[label]
        if not _is_whole(label) or not 0 <= label < self._labels:
            raise ValueError(f"expected a class number in 0..{self._labels - 1}, got {shown(label)}")
        return int(label)

    def _crop(self) -> Rectangle:
        """The crop within the picture, mirrored if the picture is."""
        try:
            return self._flipped(WHOLE if self.crop is None else clamped(self.crop))
        except ValueError as error:
            raise ValueError(f"crop: {error}") from None

    def _flipped(self, rectangle: Rectangle) -> Rectangle:
        x, y, width, height = rectangle
        return (1 - (x + width), y, width, height) if self.flip else rectangle

    def _corners(self, rectangle: Rectangle) -> tuple[int, int]:
        """The tokens of the upper left and the lower right corner."""
        x, y, width, height = rectangle
        return self._point(x, y), self._point(x + width, y + height)

    def _point(self, x: float, y: float) -> int:
        steps = self.grid - 1
        return round(y * steps) * self.grid + round(x * steps)  # halves to even


def clamped(rectangle: Any) -> Rectangle:
    """The rectangle within the picture. Raises ValueError as `Layout.tokens`."""
    numbers = isinstance(rectangle, Sequence) and len(rectangle) == 4
    if not numbers or not all(map(_is_finite, rectangle)):
        raise ValueError(f"expected x, y, width and height as four finite numbers, got {shown(rectangle)}")
    x, y, width, height = (float(value) for value in rectangle)
    if not (0 < width <= 1 + ROUNDING and 0 < height <= 1 + ROUNDING):
        raise ValueError(
            "expected a width and height above 0 and at most 1, relative to the picture, "
            f"got {width:g} and {height:g}"
        )
    if not _overlap((x, y, width, height), WHOLE):
        raise ValueError(
            f"the box from ({x:g}, {y:g}) to ({x + width:g}, {y + height:g}) is outside the picture, [0, 1]"
        )
    x, y = min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)
    return x, y, min(width, 1 - x), min(height, 1 - y)


def as_box(value: Any) -> Box:
    """One object of the inputs as a `Box`, whose values are not checked. Raises ValueError for others."""
    if isinstance(value, Box):
        return value
    if isinstance(value, Mapping):
        names = [field.name for field in fields(Box)]
        if not set(names[:5]) <= set(value) <= set(names):
            raise ValueError(f"expected an object with the keys {', '.join(names)}, got {shown(list(value))}")
        return Box(**value)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 5:
        raise ValueError(f"expected an object as (label, x, y, width, height), got {shown(value)}")
    return Box(*value)


def class_numbers(names: Any) -> dict[str, int]:
    """The numbers of classes by name. Raises ValueError unless `names` is a `Names` or None."""
    if names is None:
        return {}
    if isinstance(names, Mapping):
        numbers = dict(names)
    else:
        listed = [None] if isinstance(names, str) or not isinstance(names, Sequence) else list(names)
        if not all(isinstance(name, str) for name in listed) or len(set(listed)) < len(listed):
            raise ValueError(
                f"expected a list of different names, or a mapping to numbers, not {shown(names)}"
            )
        numbers = {name: number for number, name in enumerate(listed)}
    if not all(isinstance(name, str) and _is_whole(number) for name, number in numbers.items()):
        raise ValueError(f"expected a mapping from names to class numbers, not {shown(names)}")
    return numbers


def _as_layouts(inputs: Any, name: str) -> Sequence[Sequence[Any]]:
    if isinstance(inputs, Sequence) and len(inputs) > 0 and not isinstance(inputs, str):
        layouts = [inputs] if _is_object(inputs[0]) else inputs
        if all(isinstance(layout, Sequence) and not isinstance(layout, str) for layout in layouts):
            return layouts
    raise ValueError(
        f"expected {name} as a list of objects (label, x, y, width, height) for one image or several such "
        f"lists, got {shown(inputs)}"
    )


def _is_object(value: Any) -> bool:
    """Whether this is an object, rather than a list of objects."""
    labelled = isinstance(value, Sequence) and len(value) > 0 and isinstance(value[0], Integral | str)
    return isinstance(value, Box | Mapping) or (labelled and not isinstance(value, str))


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, Real) and math.isfinite(value)
    except OverflowError:  # an int beyond the floats
        return False


def _overlap(first: Rectangle, second: Rectangle) -> bool:
    """Whether two rectangles have a common area."""
    return all(
        min(first[k] + first[k + 2], second[k] + second[k + 2]) > max(first[k], second[k]) for k in (0, 1)
    )
