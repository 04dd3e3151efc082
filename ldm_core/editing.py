"""Editing pictures by instructions, in one call (InstructPix2Pix, Brooks et al. 2023, arXiv:2211.09800)."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, overload

from torch import Tensor

from ldm_core.conditioners.instruction import Instruction, fitted
from ldm_core.guidance import ClassifierFreeGuidance, Guidance, ImageAndTextGuidance
from ldm_core.guidance.image_and_text import IMAGE_SCALE
from ldm_core.images import ImageInput
from ldm_core.model import LatentDiffusion
from ldm_core.task_types import EditOptions, Output, Prompt

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack


class Editing:
    """The method of `Sampler` for models that edit pictures."""

    model: LatentDiffusion
    guidance: Guidance

    @overload
    def edit(
        self,
        image: ImageInput,
        prompt: Prompt,
        *,
        output: Literal["pil"] = ...,
        **options: Unpack[EditOptions],
    ) -> list[Image]: ...
    @overload
    def edit(
        self,
        image: ImageInput,
        prompt: Prompt,
        *,
        output: Literal["tensor", "latent"],
        **options: Unpack[EditOptions],
    ) -> Tensor: ...
    def edit(
        self,
        image: ImageInput,
        prompt: Prompt,
        *,
        image_guidance_scale: float | None = None,
        negative_prompt: Prompt = "",
        output: Output = "pil",
        **options: Any,
    ) -> Any:
        """Edit a picture, or each of several of one size, by an instruction such as "make it winter".

        image: a PIL image, which is fitted to the model's resolution as in the authors' script, or a tensor
            (B, 3, H, W) or (3, H, W) in [0, 1] of a size that the model takes; or a list of either.
        prompt: one for all pictures, or one for each; one picture can have several.
        image_guidance_scale: larger values keep more of the picture; by default that of the sampler's
            guidance, 1.5. options: `steps`, `guidance_scale` (7.5) and others, as in `sample`.

        The authors' script has 100 steps of `EulerAncestral()`. Raises ValueError for models that do not
        edit, and for a sampler with a guidance of another kind.
        """
        inputs = _inputs(self.model, image, prompt)
        sampler: Any = copy(self)
        sampler.guidance = guidance = _guidance(self.guidance, image_guidance_scale)
        images = sampler.sample(inputs, unconditional=negative_prompt, output=output, **options)
        if output == "pil":
            for picture in images:
                picture.info["recipe"]["image_guidance_scale"] = guidance.image_scale
        return images


def _inputs(model: LatentDiffusion, image: ImageInput, prompt: Prompt) -> list[dict[str, Any]]:
    """One mapping for each result."""
    from PIL import Image as PIL

    if not isinstance(model.conditioner, Instruction):
        raise ValueError(
            "edit requires a model that edits pictures ('instruct-pix2pix'); this model's conditioner is "
            f"{type(model.conditioner).__name__}"
        )
    several = isinstance(image, list | tuple) or (isinstance(image, Tensor) and image.ndim == 4)
    size, unit = model.config.image_size, model.config.size_multiple
    pictures = [
        fitted(one, size, unit) if isinstance(one, PIL.Image) else one
        for one in (image if several else [image])
    ]
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    count = max(len(pictures), len(prompts))
    if {len(pictures), len(prompts)} - {1, count} or not pictures or not prompts:
        raise ValueError(
            f"expected one picture or one prompt, or as many of both, got {len(pictures)} pictures and "
            f"{len(prompts)} prompts"
        )
    return [{"prompt": prompts[k % len(prompts)], "image": pictures[k % len(pictures)]} for k in range(count)]


def _guidance(guidance: Guidance, image_scale: float | None) -> ImageAndTextGuidance:
    """The guidance of a sampler, with this image scale."""
    if isinstance(guidance, ImageAndTextGuidance):
        return guidance if image_scale is None else replace(guidance, image_scale=image_scale)
    if guidance == ClassifierFreeGuidance():  # the default of a sampler that was made for another model
        return ImageAndTextGuidance(IMAGE_SCALE if image_scale is None else image_scale)
    raise ValueError(
        f"edit requires ImageAndTextGuidance, which the sampler has by default, not {type(guidance).__name__}"
    )
