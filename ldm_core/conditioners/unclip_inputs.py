"""What unCLIP is given for one picture: pictures, CLIP embeddings or texts, and how they are joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_core.clip import preprocess_stretched
from ldm_core.conditioners.fields import Fields, exactly_one, noise_level
from ldm_core.support.limits import is_number
from ldm_core.support.printable import shown

SOURCES = ("image", "images", "embedding", "embeddings", "text", "mix")
CHANGE = ("towards", "away", "amount")
FIELDS = (*SOURCES, "weights", "noise_level", "mixture_noise_level", *CHANGE)
AMOUNT = 0.3  # between the paper's 0.25 and 0.5


@dataclass(frozen=True)
class Change:
    """The direction between two texts, and the share of the angle by which to turn."""

    towards: str
    away: str
    amount: float


@dataclass(frozen=True)
class Row:
    """What one image needs.

    members: each normalised pixels (n, 3, S, S), embeddings (n, width), or a text. weights: one per vector.
    on_sphere: whether the vectors are joined before they are noised, on the sphere.
    """

    members: tuple[Tensor | str, ...]
    weights: list[float]
    level: int
    mixture_level: int | None
    on_sphere: bool
    change: Change | None

    @property
    def texts(self) -> list[str]:
        """The texts that go through the prior."""
        return [member for member in self.members if isinstance(member, str)]


@dataclass(frozen=True)
class Reader:
    """Reads the fields of one input.

    image_config: of the image encoder, or None without one. width: of embeddings. levels: number of noise
    levels. prior, texts: whether there is a prior, and an encoder of texts.
    """

    image_config: Any
    width: int
    levels: int
    prior: bool
    texts: bool

    def row(self, fields: Fields, name: str) -> Row:
        """Raises ValueError, naming `name`, for invalid fields."""
        source = exactly_one(fields, name, SOURCES)
        weights = fields.get("weights")
        if source == "mix":
            members, weights = self._mix(fields, name)
        else:
            members = (self._member(source, fields[source], f"{name}: {source}"),)
        count = sum(1 if isinstance(member, str) else len(member) for member in members)
        if not source.endswith("s") and source != "mix" and count != 1:
            raise ValueError(f"{name}: expected one {source}, got {count}; {source}s are mixed")
        again = fields.get("mixture_noise_level")
        return Row(
            members,
            checked_weights(weights, count, name),
            noise_level(fields, "noise_level", 0, self.levels, name),
            None if again is None else noise_level(fields, "mixture_noise_level", 0, self.levels, name),
            source == "mix",
            self._change(fields, name),
        )

    def _mix(self, fields: Fields, name: str) -> tuple[tuple[Tensor | str, ...], list[Any]]:
        pairs, name = fields["mix"], f"{name}: mix"
        if fields.get("weights") is not None:
            raise ValueError(
                f"{name}: its pairs have the weights; expected no others, got {shown(fields['weights'])}"
            )
        whole = isinstance(pairs, list | tuple) and len(pairs) > 0
        if not whole or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
            raise ValueError(
                f"{name}: expected a list of pairs (picture, embedding or text; weight), got {shown(pairs)}"
            )
        members = []
        for k, (value, _) in enumerate(pairs):
            embedding = isinstance(value, Tensor) and value.ndim == 1
            kind = "text" if isinstance(value, str) else "embedding" if embedding else "image"
            member = self._member(kind, value, f"{name}: {kind} {k}")
            if len(member) != 1 and not isinstance(member, str):
                raise ValueError(f"{name}: expected one {kind} in pair {k}, got {len(member)}")
            members.append(member)
        return tuple(members), [weight for _, weight in pairs]

    def _member(self, source: str, value: Any, name: str) -> Tensor | str:
        if source.startswith("image"):
            return self._pixels(value, name)
        if source.startswith("embedding"):
            return vectors(value, self.width, name)
        if not isinstance(value, str):
            raise ValueError(f"{name}: expected a text, got {type(value).__name__}")
        if not self.prior:
            raise ValueError(
                f"{name}: there is no prior, which draws embeddings for texts; expected images or embeddings"
            )
        return value

    def _change(self, fields: Fields, name: str) -> Change | None:
        given = [field for field in CHANGE if fields.get(field) is not None]
        if not given:
            return None
        if "towards" not in given:
            raise ValueError(f"{name}: expected the text towards which to change, with {' and '.join(given)}")
        towards, away, amount = fields["towards"], fields.get("away") or "", fields.get("amount", AMOUNT)
        for field, text in (("towards", towards), ("away", away)):
            if not isinstance(text, str):
                raise ValueError(f"{name}: {field} must be a text, not {type(text).__name__}")
        if not is_number(amount) or not 0 <= amount <= 1:
            raise ValueError(f"{name}: amount must be a number in [0, 1], not {shown(amount)}")
        if towards == away:
            raise ValueError(f"{name}: towards and away are the same text, {shown(towards)}")
        if not self.texts:
            raise ValueError(
                f"{name}: a change towards a text needs a prior, or the text encoder of the embeddings' CLIP"
            )
        return Change(towards, away, float(amount))

    def _pixels(self, images: Any, name: str) -> Tensor:
        if self.image_config is None:
            raise ValueError(f"{name}: there is no image encoder; expected embeddings in place of images")
        try:
            return preprocess_stretched(images, self.image_config, antialias=True)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def vectors(values: Any, width: int, name: str) -> Tensor:
    """Vectors (width,) or (n, width), or a list of them, as (n, width) in float32 on the CPU."""
    if isinstance(values, Sequence) and values and all(isinstance(value, Tensor) for value in values):
        return torch.cat([vectors(value, width, name) for value in values])
    rows = values[None] if isinstance(values, Tensor) and values.ndim == 1 else values
    if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != width or len(rows) == 0:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"{name}: expected vectors of {width} numbers, ({width},) or (n, {width}), got {found}"
        )
    if not rows.is_floating_point() or not bool(rows.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, got {rows.dtype} or NaN or infinity")
    return rows.detach().float().cpu()


def checked_weights(weights: Any, count: int, name: str) -> list[float]:
    """One weight per member, by default equal. Raises ValueError for others."""
    if weights is None:
        return [1.0] * count
    if isinstance(weights, Tensor):
        weights = weights.tolist()
    valid = isinstance(weights, list | tuple) and len(weights) == count
    if not valid or not all(is_number(w) and w >= 0 for w in weights) or not 0 < math.fsum(weights) < 1e30:
        raise ValueError(
            f"{name}: expected {count} weights of 0 or more, with a positive sum, got {shown(weights)}"
        )
    return [float(weight) for weight in weights]
