"""Prompts and boxes with words as a Condition: GLIGEN.

A box's words are represented by CLIP's output at the end of the text, before its projection (Li et al. 2023,
arXiv:2301.07093, section 4.1). The boxes act in the first part of the run only ("scheduled sampling", section
4.4); afterwards the U-Net is the plain one. The authors' counterpart is `gligen_inference.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_core.clip.bpe import END_OF_TEXT
from ldm_core.condition import Condition
from ldm_core.conditioners.fields import Fields, split_fields
from ldm_core.conditioners.layout import ROUNDING, Rectangle, as_box, clamped
from ldm_core.conditioners.text import TextConditioner
from ldm_core.support.limits import MAX_SIZE, is_number, require_whole
from ldm_core.support.printable import shown

UNTIL = 0.3  # the share of the steps, in the authors' script for boxes with words


@dataclass(frozen=True)
class GroundingConfig:
    """objects: the length of the sequence, which is padded with missing objects."""

    objects: int = 30

    def __post_init__(self) -> None:
        require_whole("grounding", self, "objects", 1, MAX_SIZE)


@dataclass(frozen=True)
class Grounding:
    """Prompts and boxes with words as a Condition with context and objects (B, 30, width).

    Inputs: {"prompt": str, "boxes": [(words, x, y, width, height), …], "until": 0.3}, or a list of them. x, y
    is the upper left corner; all four numbers are fractions of the picture, and boxes are within it. "until"
    is the share of the run's steps in which the boxes act, the same for all images of a run. Without boxes,
    as for a prompt alone, the condition has no objects, and the U-Net is the plain one. A box may also be a
    mapping with the keys label, x, y, width and height.

    position_net: the U-Net's `ldm_core.unet.grounding.PositionNet`; a model sets it to its own, which is
        therefore not one of the conditioner's `modules`. until: the default.
    """

    text: TextConditioner
    position_net: Any = None
    config: GroundingConfig = GroundingConfig()
    until: float = UNTIL

    unconditional: ClassVar[str] = ""

    def __post_init__(self) -> None:
        _check_share(self.until, "until")

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks of the conditioner, by name. They move and are saved with the model."""
        return self.text.modules

    def with_unet(self, unet: Any) -> Grounding:
        """The same conditioner with the position net of this U-Net, or of one in it, if there is any."""
        modules = unet.modules() if isinstance(unet, nn.Module) else ()
        nets = (getattr(module, "position_net", None) for module in modules)
        return replace(self, position_net=next(filter(None, nets), self.position_net))

    def count(self, inputs: Any, name: str = "inputs") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        prompts, rows = split_fields(inputs, name, ("boxes", "until"))
        for row in rows or []:
            self._objects(row, name)
        self._until(rows, name)
        return len(prompts)

    def __call__(self, inputs: Any) -> Condition:
        prompts, rows = split_fields(inputs, "inputs", ("boxes", "until"))
        context = self.text(prompts).context
        objects = [self._objects(row, "inputs") for row in rows or []]
        if not any(objects):
            return Condition(context=context)
        return Condition(context=context, objects=self._tokens(objects))

    def phases(
        self, cond: Condition, uncond: Condition, inputs: Any, steps: int
    ) -> list[tuple[Condition, Condition, int | None]]:
        """The conditions of the steps with boxes, and of those without: (conditional, unconditional, last).

        The unconditional side has missing objects only, as in the authors' script.
        """
        if cond.objects is None:
            return [(cond, uncond, None)]
        rows = None if inputs is None else split_fields(inputs, "inputs", ("boxes", "until"))[1]
        last, plain = int(self._until(rows, "inputs") * steps), cond.having(concat=cond.concat)
        if uncond is cond:
            pairs = [(cond, cond), (plain, plain)]
        else:
            missing = uncond.objects
            if missing is None:
                missing = self._tokens([[]]).to(cond.objects).expand_as(cond.objects)
            without = uncond.having(concat=uncond.concat)
            pairs = [(cond, uncond.having(concat=uncond.concat, objects=missing)), (plain, without)]
        grounded = [(*pairs[0], last)] if last else []
        return [*grounded, (*pairs[1], steps)]

    def _tokens(self, objects: list[list[tuple[str, Rectangle]]]) -> Tensor:
        """The tokens (B, N, width) of objects: words and the corners of their boxes."""
        if self.position_net is None:
            raise ValueError("boxes need position_net=, which a model's U-Net with gated self-attention has")
        rows, most = len(objects), self.config.objects
        width = self.position_net.null_positive_feature.shape[0]
        boxes, mask = torch.zeros(rows, most, 4), torch.zeros(rows, most, dtype=torch.bool)
        words = torch.zeros(rows, most, width)
        vectors = self._vectors([label for row in objects for label, _ in row])
        for i, row in enumerate(objects):
            for k, (label, corners) in enumerate(row):
                boxes[i, k], words[i, k], mask[i, k] = torch.tensor(corners), vectors[label], True
        device = self.position_net.null_positive_feature.device
        tokens: Tensor = self.position_net(boxes.to(device), words.to(device), mask)
        return tokens

    def _vectors(self, labels: Sequence[str]) -> dict[str, Tensor]:
        """CLIP's output at the end of each text (width,), float32 on the CPU."""
        distinct = list(dict.fromkeys(labels))
        if not distinct:
            return {}
        tokens = self.text.tokenizer(distinct)
        hidden = self.text.encode(tokens).float().cpu()  # (B, N, width)
        ends = (tokens.cpu() == END_OF_TEXT).int().argmax(dim=1)  # the first one
        return dict(zip(distinct, hidden[torch.arange(len(distinct)), ends]))

    def _objects(self, row: Fields, name: str) -> list[tuple[str, Rectangle]]:
        """Words and corners (x0, y0, x1, y1) of the boxes of one image. Raises ValueError for others."""
        boxes = row.get("boxes", ())
        if not isinstance(boxes, Sequence) or isinstance(boxes, str):
            raise ValueError(
                f"{name}: expected boxes as a list of (words, x, y, width, height), got {shown(boxes)}"
            )
        if len(boxes) > self.config.objects:
            raise ValueError(f"{name}: expected at most {self.config.objects} boxes, got {len(boxes)}")
        try:
            return [_object(box, k) for k, box in enumerate(boxes)]
        except ValueError as error:
            raise ValueError(f"{name}, {error}") from None

    def _until(self, rows: list[Fields] | None, name: str) -> float:
        """The share of the steps with boxes, which all images of a run have in common."""
        shares = [row.get("until", self.until) for row in rows or []] or [self.until]
        for share in shares:
            _check_share(share, f"{name}: until")
        if len(set(shares)) > 1:
            raise ValueError(f"{name}: expected the same until for all images, got {shown(shares)}")
        return float(shares[0])


def _object(box: Any, number: int) -> tuple[str, Rectangle]:
    try:
        found = as_box(box if isinstance(box, Mapping) else tuple(box) if isinstance(box, list) else box)
        if not isinstance(found.label, str) or not found.label.strip():
            raise ValueError(f"expected words that say what is in the box, got {shown(found.label)}")
        clamped(found.rectangle)  # raises for values that are not finite, and for a box without area
        x, y, width, height = (float(value) for value in found.rectangle)
        x1, y1 = x + width, y + height
        if min(x, y) < 0 or max(x1, y1) > 1 + ROUNDING:
            raise ValueError(
                f"expected a box within the picture, [0, 1], got ({x:g}, {y:g}) to ({x1:g}, {y1:g})"
            )
    except ValueError as error:
        raise ValueError(f"box {number}: {error}") from None
    return found.label, (x, y, min(x1, 1.0), min(y1, 1.0))


def _check_share(share: Any, name: str) -> None:
    if not is_number(share) or not 0 <= share <= 1:
        raise ValueError(f"{name} must be a share of the steps in [0, 1], not {shown(share)}")
