"""The types of a sampler's arguments, and of the steps that it yields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.control.control import Control
from ldm_core.images import ImageInput
from ldm_core.request import Timesteps
from ldm_core.windows import Windows

if TYPE_CHECKING:
    from ldm_core.high_resolution import HighResolution

Output = Literal["pil", "tensor", "latent"]
Prompt = str | Sequence[str]


@dataclass(frozen=True)
class SamplerStep:
    """The state after one step. `latent` and `x0` are scaled latents (B, C, h, w) for `decode_latent`."""

    index: int  # 0 … total - 1
    total: int
    t: float  # the timestep of the step's input
    latent: Tensor  # the input of the next step
    x0: Tensor  # the prediction of the final latent at this step
    _images: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)

    def images(self) -> Tensor:
        """The latent decoded to images (B, 3, H, W) in [0, 1]; when inpainting, with the known pixels."""
        if self._images is None:
            raise ValueError("only a step that a sampler made can be decoded; use model.decode_latent")
        return self._images(self.latent)


OnStep = Callable[[SamplerStep], Tensor | None]


class Options(TypedDict, total=False):
    """The keyword arguments that all tasks share."""

    num_images: int
    seed: int | Sequence[int] | None
    noise: Tensor | None
    on_step: OnStep | None
    latent: Tensor | None
    timesteps: Timesteps | None
    controls: Sequence[Control]
    image_prompt: ImageInput
    image_scale: float | Mapping[str, float]
    high_resolution: HighResolution | None
    progress: bool


class TextOptions(Options, total=False):
    """context, negative_context: (B, N, width) or (1, N, width), used instead of the prompts."""

    context: Tensor | None
    negative_context: Tensor | None


class SampleOptions(Options, total=False):
    """The keyword arguments of `Tasks.sample`."""

    unconditional: Any
    condition: Condition | None
    unconditional_condition: Condition | None
    image: ImageInput
    mask: ImageInput
    strength: float
    steps: int
    guidance_scale: float | None
    height: int | None
    width: int | None


class EditOptions(Options, total=False):
    """The keyword arguments of `Editing.edit`."""

    image_guidance_scale: float | None
    negative_prompt: Prompt
    steps: int
    guidance_scale: float | None


class UpscaleOptions(Options, total=False):
    """The keyword arguments of `Tasks.upscale`."""

    noise_level: int | None
    negative_prompt: Prompt
    windows: Windows | None
    steps: int
    guidance_scale: float | None
