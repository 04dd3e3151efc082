"""The columns that models take: one entry for each kind of conditioner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, stack

from ldm_core.conditioners import (
    ClassEmbedder,
    Layout,
    LowResolution,
    NoisedImage,
    TextConditioner,
    Unconditional,
)
from ldm_core.conditioners.noised_image import LEVEL
from ldm_core.jobs.rows import Row
from ldm_core.recipe.fields import TaskName

TEXT = ("prompt", "negative_prompt")


@dataclass(frozen=True)
class Kind:
    """What a kind of models takes. needs: columns that every row must have; also: others.

    noise_level: the default.
    """

    words: str
    needs: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    task: TaskName = "sample"
    noise_level: int | None = None

    @property
    def takes(self) -> tuple[str, ...]:
        return (*self.needs, *self.also)


KINDS: dict[type[Any], Kind] = {
    TextConditioner: Kind("prompts", ("prompt",), ("negative_prompt", "image", "strength"), "txt2img"),
    Unconditional: Kind("no inputs"),
    ClassEmbedder: Kind("class labels", ("class_label",)),
    Layout: Kind("layouts", ("layout",)),
    LowResolution: Kind("small pictures", ("image",), (), "upscale"),
    NoisedImage: Kind(
        "small pictures and prompts", ("image",), (*TEXT, "noise_level"), "upscale", noise_level=LEVEL
    ),
}
OTHER = Kind("inputs of its own", ("inputs",))
INPUTS = (*TEXT, "class_label", "layout", "image", "strength", "noise_level", "inputs")


def kind_of(conditioner: Any) -> Kind:
    """The kind of a conditioner; OTHER for one that has no entry, whose rows need `Row.inputs`."""
    return next((KINDS[cls] for cls in type(conditioner).__mro__ if cls in KINDS), OTHER)


def require_columns(kind: Kind, columns: Sequence[str], source: str) -> None:
    """Raise ValueError if a file with these columns has nothing that this kind of models draws from."""
    if kind is OTHER:
        raise ValueError("rows of a file have no column for the inputs of this model")
    for name in kind.needs:
        if name not in columns:
            found = ", ".join(columns[:20]) or "none"
            raise ValueError(
                f"{source}: this model takes {kind.words}, which needs a column {name!r}; the columns are "
                f"{found}"
            )


def require_inputs(kind: Kind, row: Row) -> None:
    """Raise ValueError unless the row has what this kind of models needs, and nothing that it ignores."""
    for name in kind.needs:
        value = getattr(row, name)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise ValueError(f"the {name} is empty; this model takes {kind.words}")
    for name in INPUTS:
        if name not in kind.takes and getattr(row, name) is not None:
            raise ValueError(f"this model takes {kind.words}, and no {name}")
    if row.strength is not None and row.image is None:
        raise ValueError("strength needs an image to start from")


def inputs_of(kind: Kind, rows: Sequence[Row]) -> dict[str, Any]:
    """The arguments of `Sampler.sample` for the inputs of these rows, besides their images."""
    if kind.task == "txt2img":
        negatives = [row.negative_prompt or "" for row in rows]
        return {"inputs": [row.prompt for row in rows], "unconditional": negatives}
    if not kind.needs:
        return {"num_images": len(rows)}
    inputs = [getattr(row, kind.needs[0]) for row in rows]
    if isinstance(inputs[0], Tensor):
        return {"inputs": stack(inputs)}
    return {"inputs": [list(one) if isinstance(one, tuple) else one for one in inputs]}
