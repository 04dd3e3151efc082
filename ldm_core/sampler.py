"""The sampling loop: it combines conditioner, U-Net, guidance, scheduler and decoder.

Algorithm 2 of DDPM (arXiv:2006.11239) in the latent space of arXiv:2112.10752: draw noise, denoise it step by
step with the scheduler and the guided prediction, decode. Image-to-image starts from a partly noised image
(SDEdit, Meng et al. 2022, arXiv:2108.01073); inpainting restores the known part after each step.
CompVis's counterparts: `scripts/txt2img.py`, `img2img.py` and `inpaint.py` with `DDIMSampler`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.conditioners.prompt_syntax import PromptSyntax, syntax_of
from ldm_core.editing import Editing
from ldm_core.guidance import Composition, Guidance, default_guidance, require_classifier_free
from ldm_core.high_resolution import second_pass
from ldm_core.images import tensor_to_pil
from ldm_core.model import LatentDiffusion
from ldm_core.nn.kept_context import KeptContext
from ldm_core.noise import randn_like
from ldm_core.noise_schedule import Denoiser
from ldm_core.request import Request
from ldm_core.schedulers import DDIM, Scheduler
from ldm_core.schedulers.base import adds_noise
from ldm_core.start import Start, prepare
from ldm_core.support.finite import FiniteCheck
from ldm_core.task_types import OnStep, Output, SamplerStep
from ldm_core.tasks import Tasks, with_conditions
from ldm_core.unet.grounding import GroundedContext


class Sampler(Tasks, Editing):
    """Generates images with a model.

    scheduler: the denoising algorithm, `DDIM()` by default.
    guidance: combines predictions, by default `ClassifierFreeGuidance()`, or for models that edit a picture
        `ImageAndTextGuidance()`.
    batch_size: maximum number of images per network evaluation; larger requests are split, with the same
        result. None: no limit.
    clip_skip: number of final text encoder blocks to skip; None: the model's default.
    prompts: the syntax of prompts: "a1111", "a1111-no-norm" (weights without restoring the mean), "compel"
        or "compel-remove" (its downweight mode REMOVE); None: prompts are plain text. Prompts without syntax
        give the same images in all of them.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        scheduler: Scheduler | None = None,
        guidance: Guidance | None = None,
        *,
        batch_size: int | None = None,
        clip_skip: int | None = None,
        prompts: str | PromptSyntax | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        if scheduler is not None and not callable(getattr(scheduler, "step", None)):
            raise ValueError(f"scheduler must be an object such as ldm_core.DDIM(), not {scheduler!r:.60}")
        if guidance is not None and not callable(guidance):
            raise ValueError(
                f"guidance must be a callable such as ldm_core.ClassifierFreeGuidance(), not {guidance!r:.60}"
            )
        self.model = model
        self.scheduler: Scheduler = DDIM() if scheduler is None else scheduler
        self.guidance: Guidance = default_guidance(model.conditioner) if guidance is None else guidance
        self.batch_size = batch_size
        self.clip_skip = clip_skip
        self.prompts = syntax_of(prompts)
        _check_scheduler(self.guidance, self.scheduler)

    def steps(
        self,
        prompt: Any = None,
        *,
        on_step: OnStep | None = None,
        gradients: bool = False,
        **options: Any,
    ) -> Iterator[SamplerStep]:
        """Run `sample` as a generator that yields a `SamplerStep` after each step.

        prompt, options: the arguments of `sample`, `txt2img`, `img2img` (with `image`) or `inpaint` (with
            `image` and `mask`).
        gradients: enable gradients from a step's latent to `noise`, `latent`, contexts and weights.
        """
        request = Request(**with_conditions(prompt, **options))
        if request.high_resolution is not None:
            raise ValueError("steps runs one pass; pass high_resolution to txt2img or img2img")
        with torch.set_grad_enabled(gradients):
            start = self._prepare(request)
        return self._run(start, on_step, gradients)

    def _run(
        self, start: Start, on_step: OnStep | None = None, gradients: bool = False
    ) -> Iterator[SamplerStep]:
        guidance = self.guidance.for_run() if hasattr(self.guidance, "for_run") else self.guidance
        latent, history, total = start.latent, None, len(start.timesteps)
        for index, (t, t_prev) in enumerate(start.timesteps):
            with torch.set_grad_enabled(gradients):  # not around the yield, where the caller's code runs
                predict = self._denoiser(start.at_step(index), guidance)
                noise = randn_like(latent, start.generators) if adds_noise(self.scheduler) else None
                done = self.scheduler.step(predict, latent, t, t_prev, history, noise)
                latent, history = start.keep_known(done.x, t_prev), done.history
            step = SamplerStep(index, total, t, latent, done.x0, partial(self._decode, start))
            replacement = on_step(step) if on_step is not None else None
            if replacement is not None:
                latent = _replacement(replacement, latent)
                step = replace(step, latent=latent)
            yield step

    def _denoiser(self, start: Start, guidance: Guidance) -> Denoiser:
        guided = self._guided(start, guidance)
        return Denoiser(guided, self.model.noise_schedule, self.model.config.prediction)

    def _guided(
        self, start: Start, guidance: Guidance
    ) -> Callable[[Tensor, float], Tensor | tuple[Tensor, Tensor]]:
        """The guided prediction as a function of x and t, evaluated in chunks of `batch_size`."""
        if start.weights is not None:
            guidance = Composition(start.weights, start.others, require_classifier_free(guidance))
        combine = getattr(guidance, "with_noise", guidance)

        def network(x: Tensor, t: float, condition: Condition) -> Tensor:
            if condition.rows not in (None, len(x)):
                raise ValueError(
                    f"expected one row of the condition per row of x, got {condition.rows} for {len(x)}"
                )
            chunk = self.batch_size or len(x)
            parts = [slice(i, i + chunk) for i in range(0, len(x), chunk)]
            return torch.cat([self._evaluate(start, x[part], t, condition[part]) for part in parts])

        def guided(x: Tensor, t: float) -> Any:
            progress = 1 - (t + 1) / len(self.model.noise_schedule)
            scale = start.guidance_scale
            return combine(network, x, t, start.cond, start.uncond, scale=scale, progress=progress)

        return guided

    def _evaluate(self, start: Start, x: Tensor, t: float, condition: Condition) -> Tensor:
        """Evaluate the U-Net, with the condition passed as in CompVis's `DiffusionWrapper`."""
        latent = x.to(self.model.dtype)
        if condition.concat is not None:
            latent = torch.cat([latent, condition.concat], dim=1)
        context: Any = condition.context if condition.kept is None else condition.kept
        if condition.objects is not None and context is not None:
            context = GroundedContext(context, condition.objects)
        vector = () if condition.vector is None else (condition.vector,)
        controls = start.controls
        added: dict[str, Any] = {}
        if controls is not None and (residuals := controls.residuals(x, t, condition, latent)) is not None:
            added["residuals"] = residuals
        picture = start.image_prompt
        with nullcontext() if picture is None else picture.used_for(condition, len(x)):
            return self.model.unet(latent, t, context, *vector, **added).to(x.dtype)

    def _prepare(self, request: Request) -> Start:
        options: Any = {"batch_size": self.batch_size, "clip_skip": self.clip_skip, "syntax": self.prompts}
        start = prepare(self.model, self.scheduler, request, **options)
        if any(phase.weights is not None for phase in start.phases):
            require_classifier_free(self.guidance)  # raises for others
        return start

    @torch.no_grad()
    def _decode(self, start: Start, latent: Tensor, finite: FiniteCheck | None = None) -> Tensor:
        """Decode latents (B, C, h, w) to images (B, 3, H, W) in [0, 1], float32 on the CPU."""
        chunks = latent.split(self.batch_size or len(latent))
        decoded = torch.cat([self.model.decode_latent(chunk).float().cpu() for chunk in chunks])
        if finite is not None:
            finite.note_pixels(decoded)
        return start.keep_known_pixels((decoded / 2 + 0.5).clamp(0, 1))

    def _draw(self, request: Request, on_step: OnStep | None, output: Output, progress: bool) -> Any:
        if output not in ("pil", "tensor", "latent"):
            raise ValueError(f"output must be 'pil', 'tensor' or 'latent', not {output!r}")
        with torch.no_grad():
            start = self._prepare(request)
        plan = request.high_resolution
        second = None if plan is None else second_pass(self.model, request, start, self.batch_size)
        if on_step is None or _is_own(on_step):
            start = self._with_kept_context(start)
        latent, finite = start.latent, FiniteCheck()
        for step in _with_bar(self._run(start, on_step), len(start.timesteps), progress):
            latent = step.latent
            finite.note(latent)
        if second is not None and plan is not None:
            pixels = self._decode(start, latent) if plan.enlarge == "picture" else None
            sampler = copy(self)
            sampler.model = second.model
            again = second.begin(self.scheduler, latent, pixels)
            result = sampler._draw(again, on_step, output, progress)
            return second.recorded(
                result, [request.recipe(k, start, self.scheduler) for k in range(len(latent))]
            )
        if output == "latent":
            finite.warn()
            return latent
        images = self._decode(start, latent, finite)
        found = finite.warn()
        if output == "tensor":
            return images
        pictures = tensor_to_pil(images)
        for k, picture in enumerate(pictures):
            recipe = request.recipe(k, start, self.scheduler)
            if self.prompts is not None:
                recipe["prompts"] = repr(self.prompts)
            picture.info |= {"seed": start.seeds[k], "recipe": recipe}
            if k in found:
                picture.info["not_finite"] = found[k]
        return pictures

    def _with_kept_context(self, start: Start) -> Start:
        """The start with the keys and values of its contexts, which are then computed once for the run.

        Only if all code of the run belongs to this package, so that weights, hooks and contexts cannot
        change.
        """
        cond, uncond = start.cond, start.uncond
        unet: Any = self.model.unet
        if (
            start.phases
            or cond.context is None
            or uncond.context is None
            or cond.context.shape != uncond.context.shape
            or not _is_own(self.guidance)
            or not _is_own(self.scheduler)
            or not vars(type(unet)).get("takes_kept_context")
            or any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
        ):
            return start
        kept, rows = KeptContext(torch.cat([uncond.context, cond.context])), len(cond.context)
        return replace(start, cond=cond.keeping(kept[rows:]), uncond=uncond.keeping(kept[:rows]))


def _check_scheduler(guidance: Any, scheduler: Any) -> None:
    """Raise ValueError if the guidance is for other schedulers alone."""
    takes = getattr(guidance, "schedulers", (object,))
    if not isinstance(scheduler, takes):
        names = " or ".join(one.__name__ for one in takes)
        raise ValueError(
            f"{type(guidance).__name__} requires the scheduler {names}, not {type(scheduler).__name__}"
        )


def _is_own(part: Any) -> bool:
    """Whether a function, or an object's class, is defined in this package."""
    return str(getattr(part, "__module__", "")).startswith("ldm_core.")


def _with_bar(steps: Iterator[SamplerStep], total: int, shown: bool) -> Iterable[SamplerStep]:
    if not shown:
        return steps
    from tqdm import tqdm

    bar: Iterable[SamplerStep] = tqdm(steps, total=total, unit="step", dynamic_ncols=True)
    return bar


def _replacement(value: Any, latent: Tensor) -> Tensor:
    """The value that on_step returned, as the next latent."""
    expected = f"expected None or a tensor of {tuple(latent.shape)} to replace the latent"
    if not isinstance(value, Tensor):
        raise ValueError(f"on_step returned {value!r:.60} ({type(value).__name__}), {expected}")
    if value.shape != latent.shape:
        raise ValueError(f"on_step returned a tensor of {tuple(value.shape)}, {expected}")
    return value.to(latent)
