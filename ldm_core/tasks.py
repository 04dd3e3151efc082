"""What a sampler draws: `sample` for every model, and its special cases for prompts.

txt2img   from noise
img2img   from a partly noised picture (SDEdit, Meng et al. 2022, arXiv:2108.01073)
inpaint   a part of a picture
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.images import ImageInput
from ldm_core.request import Request, Timesteps

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack

Output = Literal["pil", "tensor", "latent"]
Prompt = str | Sequence[str]


@dataclass(frozen=True)
class SamplerStep:
    """The state after one step. `latent` and `x0` are scaled latents (B, C, h, w) for `decode_latent`."""

    index: int  # 0 … total - 1
    total: int
    t: float  # the timestep that the step started from
    latent: Tensor  # what the next step starts from
    x0: Tensor  # the picture as it was predicted at this step
    _images: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)

    def images(self) -> Tensor:
        """The latent decoded to images (B, 3, H, W) in [0, 1], with the known pixels of an inpainting."""
        if self._images is None:
            raise ValueError("only a step of a sampler can be decoded; use model.decode_latent")
        return self._images(self.latent)


OnStep = Callable[[SamplerStep], Tensor | None]


class Options(TypedDict, total=False):
    """The keywords that every task has besides its own."""

    num_images: int
    seed: int | Sequence[int] | None
    noise: Tensor | None
    on_step: OnStep | None
    latent: Tensor | None
    timesteps: Timesteps | None
    progress: bool


class TextOptions(Options, total=False):
    """context, negative_context: (B, N, width) or (1, N, width), in the place of the prompts."""

    context: Tensor | None
    negative_context: Tensor | None


class SampleOptions(Options, total=False):
    """The keywords of `Tasks.sample`."""

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


def with_conditions(
    prompt: Any = None,
    negative_prompt: Any = None,
    *,
    context: Tensor | None = None,
    negative_context: Tensor | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The arguments of `sample` for prompts or contexts: a context takes the place of its prompt."""
    if prompt is not None:
        options["inputs"] = prompt
    if context is not None:
        options["condition"] = Condition(context=context)
    if negative_context is not None:
        options["unconditional_condition"] = Condition(context=negative_context)
    elif negative_prompt is not None:
        options["unconditional"] = negative_prompt
    return options


class Tasks(ABC):
    """The methods of `Sampler` that draw.

    A PIL image's `info` has the "seed" that it was drawn with and the "recipe", a dictionary of what was
    asked for. Where the latents or pixels of an image end with NaN or infinity, which draw black, there is a
    warning, and `info["not_finite"]` tells since which step.
    """

    @abstractmethod
    def _draw(self, request: Request, on_step: OnStep | None, output: Output, progress: bool) -> Any: ...

    @overload
    def sample(
        self, inputs: Any = ..., *, output: Literal["pil"] = ..., **options: Unpack[SampleOptions]
    ) -> list[Image]: ...
    @overload
    def sample(
        self, inputs: Any = ..., *, output: Literal["tensor", "latent"], **options: Unpack[SampleOptions]
    ) -> Tensor: ...
    def sample(
        self,
        inputs: Any = None,
        *,
        unconditional: Any = None,
        condition: Condition | None = None,
        unconditional_condition: Condition | None = None,
        image: ImageInput = None,
        mask: ImageInput = None,
        strength: float = 1.0,
        steps: int = 50,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        noise: Tensor | None = None,
        latent: Tensor | None = None,
        timesteps: Timesteps | None = None,
        on_step: OnStep | None = None,
        progress: bool = False,
        output: Output = "pil",
    ) -> Any:
        """Draw `num_images` pictures for each of the inputs, with any model.

        inputs: what the model's conditioner takes: prompts, class labels, None for an unconditional model.
        condition: a `Condition` in the place of inputs: embeddings of one's own.
        unconditional, unconditional_condition: what guidance moves away from, as inputs or as a Condition;
            by default the conditioner's own. Fields that it lacks are the other's. One row serves all.
        image, mask, strength: as in `img2img` and `inpaint`. steps: 1..T.
        guidance_scale: 1 is without guidance; None is 7.5, or 1 with nothing to move away from.
        height, width: pixels, by default the size that the model was trained for.
        seed: image k is drawn with seed + k, or with seed[k]; images are ordered by input.
        noise: (B, C, h, w) standard normal, instead of the seed's draw. latent: what to start from instead.
        timesteps: pairs (t, t_prev) in the place of the scheduler's. on_step: called after every step with a
            `SamplerStep`; a tensor it returns replaces the latent.
        progress: show a bar. output: "pil" (a list), "tensor" ((B, 3, H, W) in [0, 1]) or "latent" ((B, C, h,
            w), scaled).

        Raises ValueError for whatever does not fit, before anything is computed.
        """
        request = Request(
            inputs=inputs,
            unconditional=unconditional,
            condition=condition,
            unconditional_condition=unconditional_condition,
            image=image,
            mask=mask,
            strength=strength,
            steps=steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            num_images=num_images,
            seed=seed,
            noise=noise,
            latent=latent,
            timesteps=timesteps,
        )
        return self._draw(request, on_step, output, progress)

    @overload
    def txt2img(
        self,
        prompt: Prompt | None = ...,
        negative_prompt: Prompt = ...,
        steps: int = ...,
        guidance_scale: float = ...,
        height: int | None = ...,
        width: int | None = ...,
        *,
        output: Literal["pil"] = ...,
        **options: Unpack[TextOptions],
    ) -> list[Image]: ...
    @overload
    def txt2img(
        self,
        prompt: Prompt | None = ...,
        negative_prompt: Prompt = ...,
        steps: int = ...,
        guidance_scale: float = ...,
        height: int | None = ...,
        width: int | None = ...,
        *,
        output: Literal["tensor", "latent"],
        **options: Unpack[TextOptions],
    ) -> Tensor: ...
    def txt2img(
        self,
        prompt: Prompt | None = None,
        negative_prompt: Prompt = "",
        steps: int = 50,
        guidance_scale: float = 7.5,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        output: Output = "pil",
        **options: Any,
    ) -> Any:
        """Draw `num_images` pictures of each prompt.

        prompt, negative_prompt: a string or a list; one negative prompt serves all.
        options: context and negative_context, (1, N, width) or one row per prompt, in the place of the
            prompts; latent, timesteps and progress. They and the other arguments are those of `sample`.
        """
        sample: Any = self.sample
        return sample(
            steps=steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            num_images=num_images,
            seed=seed,
            noise=noise,
            on_step=on_step,
            output=output,
            **with_conditions(prompt, negative_prompt, **options),
        )

    @overload
    def img2img(
        self,
        prompt: Prompt | None = ...,
        image: ImageInput = ...,
        strength: float = ...,
        negative_prompt: Prompt = ...,
        steps: int = ...,
        guidance_scale: float = ...,
        *,
        output: Literal["pil"] = ...,
        **options: Unpack[TextOptions],
    ) -> list[Image]: ...
    @overload
    def img2img(
        self,
        prompt: Prompt | None = ...,
        image: ImageInput = ...,
        strength: float = ...,
        negative_prompt: Prompt = ...,
        steps: int = ...,
        guidance_scale: float = ...,
        *,
        output: Literal["tensor", "latent"],
        **options: Unpack[TextOptions],
    ) -> Tensor: ...
    def img2img(
        self,
        prompt: Prompt | None = None,
        image: ImageInput = None,
        strength: float = 0.75,
        negative_prompt: Prompt = "",
        steps: int = 50,
        guidance_scale: float = 7.5,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        output: Output = "pil",
        **options: Any,
    ) -> Any:
        """Redraw a picture after a prompt.

        image: a PIL image or a tensor in [0, 1]; one for all prompts, or one per prompt. Its size is the
            result's. strength: in (0, 1], how far back into the noise it is taken; about strength * steps
            steps are made, and 1 is `txt2img`. The rest as in `txt2img`.
        """
        sample: Any = self.sample
        return sample(
            image=image,
            strength=strength,
            steps=steps,
            guidance_scale=guidance_scale,
            num_images=num_images,
            seed=seed,
            noise=noise,
            on_step=on_step,
            output=output,
            **with_conditions(prompt, negative_prompt, **options),
        )

    @overload
    def inpaint(
        self,
        prompt: Prompt | None = ...,
        image: ImageInput = ...,
        mask: ImageInput = ...,
        strength: float = ...,
        negative_prompt: Prompt = ...,
        steps: int = ...,
        guidance_scale: float = ...,
        *,
        output: Literal["pil"] = ...,
        **options: Unpack[TextOptions],
    ) -> list[Image]: ...
    @overload
    def inpaint(
        self,
        prompt: Prompt | None = ...,
        image: ImageInput = ...,
        mask: ImageInput = ...,
        strength: float = ...,
        negative_prompt: Prompt = ...,
        steps: int = ...,
        guidance_scale: float = ...,
        *,
        output: Literal["tensor", "latent"],
        **options: Unpack[TextOptions],
    ) -> Tensor: ...
    def inpaint(
        self,
        prompt: Prompt | None = None,
        image: ImageInput = None,
        mask: ImageInput = None,
        strength: float = 1.0,
        negative_prompt: Prompt = "",
        steps: int = 50,
        guidance_scale: float = 7.5,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        output: Output = "pil",
        **options: Any,
    ) -> Any:
        """Repaint the white part of a mask; every pixel under black stays exactly as it was.

        An inpainting U-Net (SD1's has 9 input channels) sees the mask and the masked image; with one that
        sees the latents alone, the known part is put back, noised as the step demands, after every step.
        Grey blends. The rest as in `img2img`.
        """
        sample: Any = self.sample
        return sample(
            image=image,
            mask=mask,
            strength=strength,
            steps=steps,
            guidance_scale=guidance_scale,
            num_images=num_images,
            seed=seed,
            noise=noise,
            on_step=on_step,
            output=output,
            **with_conditions(prompt, negative_prompt, **options),
        )
