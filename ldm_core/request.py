"""A request: the arguments of `Sampler.sample` as one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.images import ImageInput
from ldm_core.schedulers import Scheduler

if TYPE_CHECKING:
    from ldm_core.high_resolution import HighResolution
    from ldm_core.start import Start

Timesteps = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of `Sampler.sample`, which documents the fields."""

    inputs: Any = None
    unconditional: Any = None
    condition: Condition | None = None
    unconditional_condition: Condition | None = None
    image: ImageInput = None
    mask: ImageInput = None
    strength: float = 1.0
    steps: int = 50
    guidance_scale: float | None = None
    height: int | None = None
    width: int | None = None
    num_images: int = 1
    seed: int | Sequence[int] | None = None
    noise: Tensor | None = None
    latent: Tensor | None = None
    timesteps: Timesteps | None = None
    controls: Any = ()
    image_prompt: ImageInput = None
    image_scale: Any = 1.0
    high_resolution: HighResolution | None = None

    def recipe(self, image: int, start: Start, scheduler: Scheduler) -> dict[str, Any]:
        """The settings of one image as plain values, without tensors and images."""
        count, (height, width) = len(start.seeds), start.size
        plain = {
            "inputs": _one(self.inputs, image, count),
            "unconditional": _one(self.unconditional, image, count),
        }
        if isinstance(plain["inputs"], Mapping):
            plain |= plain.pop("inputs")
        elif isinstance(plain["inputs"], str):
            plain = {"prompt": plain["inputs"], "negative_prompt": plain["unconditional"]}
        if "negative_prompt" in plain and self.unconditional_condition is None:
            plain["negative_prompt"] = plain["negative_prompt"] or ""
        return {name: value for name, value in plain.items() if value is not None} | {
            "seed": start.seeds[image],
            "steps": self.steps,
            "guidance_scale": start.guidance_scale,
            "strength": self.strength,
            "height": height,
            "width": width,
            "scheduler": repr(scheduler),
        }


def _is_plain(value: Any) -> bool:
    """Whether this is text, a number, or a list or mapping of them, and no image or tensor."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and _is_plain(inner) for name, inner in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float)


def _one(inputs: Any, image: int, count: int) -> Any:
    """The input of one of `count` images: its plain values. Images of one input are consecutive."""
    if isinstance(inputs, list | tuple) and inputs and count % len(inputs) == 0:
        inputs = inputs[image * len(inputs) // count]
    if isinstance(inputs, Mapping):
        return {name: value for name, value in inputs.items() if _is_plain(value)}
    return inputs if isinstance(inputs, str | int) else None
