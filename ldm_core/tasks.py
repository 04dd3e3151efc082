"""The methods of a sampler: `sample` for every model, and special cases of it for prompts.

txt2img   starts from noise
img2img   starts from a partly noised image (SDEdit, Meng et al. 2022, arXiv:2108.01073)
inpaint   repaints a part of an image
upscale   enlarges an image
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Literal, overload

from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.images import ImageInput
from ldm_core.model import LatentDiffusion
from ldm_core.request import Request
from ldm_core.task_types import OnStep, Output, Prompt, SampleOptions, TextOptions, UpscaleOptions
from ldm_core.upscaling import prepare_upscaling
from ldm_core.windows import Windows

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Unpack


def with_conditions(
    prompt: Any = None,
    negative_prompt: Any = None,
    *,
    context: Tensor | None = None,
    negative_context: Tensor | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The arguments of `sample` for prompts or contexts. A context replaces its prompt.

    Without both, an empty negative prompt is none: the model may take no text.
    """
    if prompt is not None:
        options["inputs"] = prompt
    if context is not None:
        options["condition"] = Condition(context=context)
    if negative_context is not None:
        options["unconditional_condition"] = Condition(context=negative_context)
    elif negative_prompt is not None and (prompt, context, negative_prompt) != (None, None, ""):
        options["unconditional"] = negative_prompt
    return options


class Tasks(ABC):
    """The methods of `Sampler` that generate images.

    The `info` of a PIL image contains its "seed" and its "recipe", a dictionary of all settings. If the
    latents or pixels of an image end with NaN or infinity, which give black pixels, there is a warning, and
    `info["not_finite"]` names the first such step.
    """

    model: LatentDiffusion
    batch_size: int | None

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
        on_step: OnStep | None = None,
        progress: bool = False,
        output: Output = "pil",
        **options: Any,
    ) -> Any:
        """Generate `num_images` images for each of the inputs, with any model.

        inputs: what the model's conditioner takes: prompts, class labels, or None for an unconditional model.
        condition: a `Condition`, such as custom embeddings, instead of inputs.
        unconditional, unconditional_condition: the unconditional side of guidance, as inputs or as a
            Condition; by default the conditioner's, such as the empty prompt. It shares the fields that it
            lacks with the conditional one. A single row applies to all images.
        image, mask, strength: as in `img2img` and `inpaint`. steps: number of scheduler steps, 1..T.
        guidance_scale: 1 disables guidance; None is 7.5, or 1 without an unconditional condition.
        height, width: in pixels, by default the training resolution.
        seed: image k uses seed + k, or seed[k]; images are ordered by input.
        noise: (B, C, h, w), standard normal, instead of the seed's. latent: the first step's input.
        timesteps: pairs (t, t_prev), not the scheduler's. high_resolution: enlarge and draw again.
        controls: ControlNets and T2I-Adapters with their hints, which all act together.
        image_prompt, image_scale: pictures for the model's IP-Adapter, and their strength, also by layer.
        on_step: called with a `SamplerStep` after each step; a returned tensor replaces the latent.
        progress: show a bar. output: "pil", "tensor" (B, 3, H, W) in [0, 1], or scaled "latent" (B, C, h, w).

        Raises ValueError for invalid arguments before anything is computed.
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
            **options,
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
        guidance_scale: float | None = ...,
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
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        output: Output = "pil",
        **options: Any,
    ) -> Any:
        """Generate `num_images` images for each prompt.

        prompt, negative_prompt: a string or a list; a single negative prompt applies to all.
        options: `context` and `negative_context`, (1, N, width) or one row per prompt, instead of the
            prompts; `latent`, `timesteps`, `controls`, `image_prompt`, `image_scale`, `high_resolution` and
            `progress`. They and the other arguments are as in `sample`.
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
        guidance_scale: float | None = ...,
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
        guidance_scale: float | None = ...,
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
        guidance_scale: float | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        output: Output = "pil",
        **options: Any,
    ) -> Any:
        """Modify an image according to a prompt.

        image: a PIL image or a tensor in [0, 1]; for all prompts or one per prompt. It sets the output size.
        strength: amount of noise in (0, 1]; about strength * steps steps are run, and 1 equals `txt2img`.
        guidance_scale: as in `sample`. The prompt of a model without text is None.

        The other arguments are as in `txt2img`.
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
        guidance_scale: float | None = ...,
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
        guidance_scale: float | None = ...,
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
        guidance_scale: float | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        output: Output = "pil",
        **options: Any,
    ) -> Any:
        """Repaint the white part of a mask. Pixels under black stay exactly unchanged, and grey blends.

        An inpainting U-Net (SD1's has 9 input channels) takes the mask and the masked image as input. With
        any other U-Net, the known part is restored after each step, noised to the timestep. The other
        arguments are as in `img2img`. The prompt is None for latent diffusion's own inpainting.
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

    @overload
    def upscale(
        self,
        image: ImageInput,
        prompt: Prompt | None = ...,
        *,
        output: Literal["pil"] = ...,
        **options: Unpack[UpscaleOptions],
    ) -> list[Image]: ...
    @overload
    def upscale(
        self,
        image: ImageInput,
        prompt: Prompt | None = ...,
        *,
        output: Literal["tensor", "latent"],
        **options: Unpack[UpscaleOptions],
    ) -> Tensor: ...
    def upscale(
        self,
        image: ImageInput,
        prompt: Prompt | None = None,
        *,
        noise_level: int | None = None,
        negative_prompt: Prompt = "",
        windows: Windows | None = None,
        output: Output = "pil",
        **options: Any,
    ) -> Any:
        """Enlarge images f times, with a model for super-resolution.

        image: one or several small images of one size. If its sides are not multiples of the U-Net's factor,
            it is padded at the right and bottom by reflection, and the result is cropped.
        prompt, negative_prompt, noise_level: for the x4 upscaler alone: what the image shows, and the noise
            that it adds to the small image. bsr_sr was published for `Sampler(model, DDIM(eta=1.0))`.
        windows: evaluate the networks in windows, as a model of `ldm_core.windowed` does.
        options: `steps`, `guidance_scale` and others, as in `sample`.

        Raises ValueError for other models, and for an image whose result needs more memory than there is.
        """
        job = prepare_upscaling(
            self.model, image, prompt, negative_prompt, noise_level, windows, self.batch_size
        )
        sampler = copy(self)
        sampler.model = job.model
        sample: Any = sampler.sample
        result = sample(job.inputs, unconditional=job.unconditional, output=output, **options)
        return job.cropped(result, output)
