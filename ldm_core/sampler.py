"""From a prompt to a picture: the thin loop that joins text encoder, U-Net, scheduler and decoder.

Algorithm 2 of DDPM (arXiv:2006.11239) in the latent space of arXiv:2112.10752: draw noise, let the
scheduler walk it down the noise levels with the guided prediction, decode. Image-to-image starts from a
partly noised image (SDEdit, Meng et al. 2022, arXiv:2108.01073); inpainting keeps what is known in place.
CompVis's counterparts: `scripts/txt2img.py`, `img2img.py` and `inpaint.py` with `DDIMSampler`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ldm_core.conditioners.prompts import SameContexts
from ldm_core.guidance import ClassifierFreeGuidance, Guidance
from ldm_core.images import ImageInput, tensor_to_pil
from ldm_core.model import LatentDiffusion
from ldm_core.noise import randn
from ldm_core.noise_schedule import Denoiser
from ldm_core.request import Prompt, Task, Trajectory, prepare
from ldm_core.schedulers import DDIM, Scheduler
from ldm_core.support.finite import FiniteCheck

Output = Literal["pil", "tensor", "latent"]


@dataclass(frozen=True)
class SamplerStep:
    """The state after one step. `latent` and `x0` are scaled latents (B, C, h, w) for `decode_latent`."""

    index: int  # 0 … total - 1
    total: int
    t: float  # the timestep that the step started from
    latent: Tensor  # what the next step starts from
    x0: Tensor  # the picture as it was predicted at this step


OnStep = Callable[[SamplerStep], Tensor | None]


class Sampler:
    """Draws pictures with a model.

    scheduler: how the noise is walked down, `DDIM()` by default.
    guidance: how conditional and unconditional predictions are combined.
    batch_size: how many images go through a network at once; larger requests are cut into chunks, with
        the same result. None: all at once.
    clip_skip: final text encoder blocks to leave out; None: the model's own.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        scheduler: Scheduler | None = None,
        guidance: Guidance | None = None,
        *,
        batch_size: int | None = None,
        clip_skip: int | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        self.model = model
        self.scheduler: Scheduler = DDIM() if scheduler is None else scheduler
        self.guidance: Guidance = ClassifierFreeGuidance() if guidance is None else guidance
        self.batch_size = batch_size
        self.clip_skip = clip_skip

    def txt2img(
        self,
        prompt: Prompt,
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
    ) -> Any:
        """Draw `num_images` pictures of each prompt.

        prompt, negative_prompt: a string or a list; one negative prompt serves all.
        steps: evaluations of the scheduler, 1..T. guidance_scale: 1 is without guidance.
        height, width: pixels, by default the size that the model was trained for.
        seed: image k is drawn with seed + k, or with seed[k]; images are ordered by prompt.
        noise: (B, C, h, w) standard normal, instead of the seed's initial draw.
        on_step: called after every step with a `SamplerStep`; a tensor it returns replaces the latent.
        output: "pil" (a list), "tensor" ((B, 3, H, W) in [0, 1]) or "latent" ((B, C, h, w), scaled).
        Raises ValueError for whatever does not fit, before anything is computed. Warns where the latents or
        pixels of an image end with NaN or infinity, which draw black; the PIL image's `info["not_finite"]`
        then says since which step.
        """
        task = Task(
            prompt,
            negative_prompt,
            steps=steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            num_images=num_images,
            seed=seed,
            noise=noise,
        )
        return self._draw(task, on_step, output)

    def img2img(
        self,
        prompt: Prompt,
        image: ImageInput,
        strength: float = 0.75,
        negative_prompt: Prompt = "",
        steps: int = 50,
        guidance_scale: float = 7.5,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        output: Output = "pil",
    ) -> Any:
        """Redraw a picture after a prompt.

        image: a PIL image or a tensor in [0, 1]; one for all prompts, or one per prompt. Its size is the
            result's. strength: in (0, 1], how far back into the noise it is taken; about strength * steps
            steps are made, and 1 is `txt2img`. The rest as in `txt2img`.
        """
        task = Task(
            prompt,
            negative_prompt,
            image=image,
            strength=strength,
            steps=steps,
            guidance_scale=guidance_scale,
            num_images=num_images,
            seed=seed,
            noise=noise,
        )
        return self._draw(task, on_step, output)

    def inpaint(
        self,
        prompt: Prompt,
        image: ImageInput,
        mask: ImageInput,
        strength: float = 1.0,
        negative_prompt: Prompt = "",
        steps: int = 50,
        guidance_scale: float = 7.5,
        num_images: int = 1,
        seed: int | Sequence[int] | None = None,
        noise: Tensor | None = None,
        on_step: OnStep | None = None,
        output: Output = "pil",
    ) -> Any:
        """Repaint the white part of a mask; every pixel under black stays exactly as it was.

        An inpainting U-Net (SD1's has 9 input channels) sees the mask and the masked image; with one that
        sees the latents alone, the known part is put back, noised as the step demands, after every step.
        Grey blends. The rest as in `img2img`.
        """
        task = Task(
            prompt,
            negative_prompt,
            image=image,
            mask=mask,
            strength=strength,
            steps=steps,
            guidance_scale=guidance_scale,
            num_images=num_images,
            seed=seed,
            noise=noise,
        )
        return self._draw(task, on_step, output)

    def steps(
        self, prompt: Prompt, *, on_step: OnStep | None = None, **options: Any
    ) -> Iterator[SamplerStep]:
        """The same as a generator of `SamplerStep`s, one after every step.

        options: the fields of `Task`; with `image` it is `img2img`, with `mask` too it is `inpaint`.
        """
        return self._walk(self._prepare(Task(prompt, **options)), on_step)

    def _prepare(self, task: Task) -> Trajectory:
        return prepare(self.model, self.scheduler, task, batch_size=self.batch_size, clip_skip=self.clip_skip)

    def _draw(self, task: Task, on_step: OnStep | None, output: Output) -> Any:
        if output not in ("pil", "tensor", "latent"):
            raise ValueError(f"output must be 'pil', 'tensor' or 'latent', not {output!r}")
        trajectory = self._prepare(task)
        latent, finite = trajectory.latent, FiniteCheck()
        for step in self._walk(trajectory, on_step):
            latent = step.latent
            finite.note(latent)
        if output == "latent":
            finite.warn()
            return latent
        decoded = self._decode(latent)
        finite.note_pixels(decoded)
        found = finite.warn()
        images = trajectory.keep_known_pixels((decoded / 2 + 0.5).clamp(0, 1))
        if output == "tensor":
            return images
        pictures = tensor_to_pil(images)
        for image, what in found.items():
            pictures[image].info["not_finite"] = what
        return pictures

    def _walk(self, trajectory: Trajectory, on_step: OnStep | None) -> Iterator[SamplerStep]:
        predict = Denoiser(self._guided(trajectory), self.model.noise_schedule, self.model.config.prediction)
        latent, history = trajectory.latent, None
        total = len(trajectory.timesteps)
        for index, (t, t_prev) in enumerate(trajectory.timesteps):
            with torch.no_grad():  # not around the yield, which would switch gradients off for the caller
                noise = randn(latent.shape, trajectory.streams).to(latent)
                done = self.scheduler.step(predict, latent, t, t_prev, history, noise)
                latent, history = done.x, done.history
                if trajectory.known is not None:
                    latent = trajectory.known.put_back(latent, t_prev)
            step = SamplerStep(index, total, t, latent, done.x0)
            replacement = on_step(step) if on_step is not None else None
            if replacement is not None:
                latent = _replacement(replacement, latent)
                step = replace(step, latent=latent)
            yield step

    def _guided(self, trajectory: Trajectory) -> Callable[[Tensor, float], Tensor]:
        """The network as a function of x and t alone: guided, and in chunks of the batch size."""
        model, extra, last = self.model, trajectory.extra, len(self.model.noise_schedule)
        same = SameContexts()

        def network(x: Tensor, t: float, context: Tensor) -> Tensor:
            if extra is not None:  # x is the batch once, or twice for guidance
                x = torch.cat([x, extra.repeat(len(x) // len(extra), 1, 1, 1)], dim=1)
            chunk = self.batch_size or len(x)
            outputs = [
                model.unet(x[i : i + chunk].to(model.dtype), t, same(context[i : i + chunk]))
                for i in range(0, len(x), chunk)
            ]
            return torch.cat(outputs).to(x.dtype)

        def guided(x: Tensor, t: float) -> Tensor:
            return self.guidance(
                network,
                x,
                t,
                trajectory.cond,
                trajectory.uncond,
                scale=trajectory.guidance_scale,
                progress=1 - (t + 1) / last,
            )

        return guided

    @torch.no_grad()
    def _decode(self, latent: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W), float32 around [-1, 1] on the CPU."""
        chunks = latent.split(self.batch_size or len(latent))
        return torch.cat([self.model.decode_latent(chunk).float().cpu() for chunk in chunks])


def _replacement(value: Any, latent: Tensor) -> Tensor:
    """What on_step returned, as the next latent."""
    expected = f"expected None or a tensor of {tuple(latent.shape)} that replaces the latent"
    if not isinstance(value, Tensor):
        raise ValueError(f"on_step returned {value!r:.60} ({type(value).__name__}), {expected}")
    if value.shape != latent.shape:
        raise ValueError(f"on_step returned a tensor of {tuple(value.shape)}, {expected}")
    return value.to(latent)
