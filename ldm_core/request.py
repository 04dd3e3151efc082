"""From a request to the start of a walk: everything that is checked and computed before the first step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_core.conditioners.prompts import (
    KnownPart,
    as_prompts,
    encode_prompts,
    inpainting_condition,
    latent_mask,
    require_size,
)
from ldm_core.images import ImageInput, image_to_tensor, mask_to_tensor
from ldm_core.model import LatentDiffusion
from ldm_core.noise import generators, image_seeds, randn
from ldm_core.schedulers import Scheduler
from ldm_core.schedulers.spacing import truncate

Prompt = str | Sequence[str]
Streams = list[torch.Generator]


@dataclass(frozen=True)
class Task:
    """What is to be drawn; `Sampler.txt2img`, `img2img` and `inpaint` explain the fields.

    latent, timesteps: for research, start from this latent (B, C, h, w) and walk these pairs (t, t_prev)
    instead of those that the scheduler and the strength give.
    """

    prompt: Prompt
    negative_prompt: Prompt = ""
    image: ImageInput = None
    mask: ImageInput = None
    strength: float = 1.0
    steps: int = 50
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    num_images: int = 1
    seed: int | Sequence[int] | None = None
    noise: Tensor | None = None
    latent: Tensor | None = None
    timesteps: Sequence[tuple[float, float]] | None = None


@dataclass(frozen=True)
class Trajectory:
    """The start of a walk. All tensors have one row per image."""

    latent: Tensor  # (B, C, h, w)
    timesteps: Sequence[tuple[float, float]]
    streams: Streams  # one random stream per image
    cond: Tensor  # (B, N, width), the prompts
    uncond: Tensor  # (B, N, width), the negative prompts
    guidance_scale: float
    image: Tensor | None = None  # (B, 3, H, W) in [0, 1]
    mask: Tensor | None = None  # (B, 1, H, W) in [0, 1]
    known: KnownPart | None = None  # inpainting with a U-Net that takes latents only
    extra: Tensor | None = None  # (B, 1 + C, h, w), what an inpainting U-Net takes after its latents

    def keep_known_pixels(self, images: Tensor) -> Tensor:
        """Lay the original over decoded images (B, 3, H, W) in [0, 1] where the mask is black."""
        if self.mask is None or self.image is None:
            return images
        blend = self.mask * images + (1 - self.mask) * self.image
        return torch.where(self.mask == 0, self.image, blend)


@torch.no_grad()
def prepare(
    model: LatentDiffusion,
    scheduler: Scheduler,
    task: Task,
    *,
    batch_size: int | None = None,
    clip_skip: int | None = None,
) -> Trajectory:
    """Check a task and compute its start. Raises ValueError for whatever does not fit, computing nothing.

    Each image's stream gives its initial noise first, so txt2img, img2img and inpaint start alike.
    """
    _check_task(model)
    prompts, negatives = _texts(task)
    image, mask = _pixels(task, len(prompts))
    height, width = _size(model, task, image)
    streams = generators(image_seeds(task.seed, len(prompts)))
    f = model.config.autoencoder.downsampling
    shape = (len(prompts), model.config.unet.out_channels, height // f, width // f)
    state = torch.promote_types(model.dtype, torch.float32)  # the walk itself is in float32 at least
    noise = _checked(task.noise, "noise", shape)
    noise = (randn(shape, streams) if noise is None else noise).to(model.device, state)
    start, pairs = truncate(scheduler.timesteps(model.noise_schedule, task.steps), task.strength)
    replacement = _checked(task.latent, "latent", shape)

    chunk = batch_size or len(prompts)
    latent, known, extra = noise, None, None
    if model.config.unet.in_channels > shape[1]:
        extra = _inpainting_input(model, image, mask, shape, streams, chunk).to(noise)
    if image is not None and (task.strength < 1 or (mask is not None and extra is None)):
        x0 = _encode(model, image, streams, chunk).to(noise)
        if task.strength < 1:
            latent = model.noise_schedule.add_noise(x0, noise, start)
        if mask is not None and extra is None:
            known = KnownPart(latent_mask(mask, f).to(x0), x0, noise, model.noise_schedule)
            latent = known.put_back(latent, start)
    contexts = encode_prompts(model, prompts + negatives, batch_size=batch_size, clip_skip=clip_skip)
    cond, uncond = contexts.to(model.device, model.dtype).chunk(2)
    return Trajectory(
        latent=latent if replacement is None else replacement.to(noise),
        timesteps=pairs if task.timesteps is None else list(task.timesteps),
        streams=streams,
        cond=cond,
        uncond=uncond,
        guidance_scale=task.guidance_scale,
        image=image,
        mask=mask,
        known=known,
        extra=extra,
    )


def _texts(task: Task) -> tuple[list[str], list[str]]:
    """One prompt and one negative prompt for every image; the images of a prompt follow one another."""
    prompts = as_prompts(task.prompt)
    negatives = as_prompts(task.negative_prompt, "negative_prompt")
    if len(negatives) not in (1, len(prompts)):
        expected = "1" if len(prompts) == 1 else f"1 or {len(prompts)}"
        raise ValueError(f"{len(prompts)} prompt(s) take {expected} negative prompt(s), got {len(negatives)}")
    if not isinstance(task.num_images, int) or task.num_images < 1:
        raise ValueError(f"num_images must be a positive int, not {task.num_images!r}")
    if not isinstance(task.guidance_scale, (int, float)) or not math.isfinite(task.guidance_scale):
        raise ValueError(f"guidance_scale must be a finite number, not {task.guidance_scale!r}")
    negatives = negatives * (len(prompts) // len(negatives))
    return (
        [p for p in prompts for _ in range(task.num_images)],
        [n for n in negatives for _ in range(task.num_images)],
    )


def _pixels(task: Task, count: int) -> tuple[Tensor | None, Tensor | None]:
    """The image and the mask of a task as tensors with one row per image to draw."""
    if task.image is None:
        if task.mask is not None:
            raise ValueError("a mask needs the image that it belongs to")
        if task.strength != 1.0:
            raise ValueError(f"strength {task.strength} needs an image to start from")
        return None, None
    image = _rows(image_to_tensor(task.image), "image", count, task.num_images)
    if task.mask is None:
        return image, None
    mask = _rows(mask_to_tensor(task.mask), "mask", count, task.num_images)
    if mask.shape[2:] != image.shape[2:]:
        sizes = [f"{x.shape[3]}×{x.shape[2]}" for x in (mask, image)]
        raise ValueError(f"the mask has {sizes[0]} pixels, the image {sizes[1]}; they must be the same")
    return image, mask


def _rows(tensor: Tensor, name: str, count: int, num_images: int) -> Tensor:
    """One row for all images, or one per prompt, to one per image."""
    prompts = count // num_images
    if len(tensor) not in (1, prompts):
        raise ValueError(f"expected one {name} or one per prompt ({prompts}), got {len(tensor)}")
    return tensor.expand(prompts, -1, -1, -1).repeat_interleave(num_images, dim=0)


def _size(model: LatentDiffusion, task: Task, image: Tensor | None) -> tuple[int, int]:
    default = model.config.image_size
    height = default if task.height is None else task.height
    width = default if task.width is None else task.width
    if image is not None:
        height, width = image.shape[2:]
    require_size(model.config, height, width)
    return height, width


def _checked(tensor: Tensor | None, name: str, shape: tuple[int, ...]) -> Tensor | None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(f"expected {name} of {shape}, got {tuple(tensor.shape)}")
    return tensor


def _check_task(model: LatentDiffusion) -> None:
    unet = model.config.unet
    if unet.num_classes is not None or unet.adm_in_channels is not None:
        raise ValueError("this U-Net also takes class labels or image embeddings; the sampler gives none")
    latents, inpainting = unet.out_channels, 2 * unet.out_channels + 1
    if unet.in_channels not in (latents, inpainting):
        raise ValueError(
            f"this U-Net takes {unet.in_channels} channels; the sampler knows those of {latents} (latents) "
            f"and of {inpainting} (latents, mask, masked image)"
        )


def _encode(model: LatentDiffusion, image: Tensor, streams: Streams, chunk: int) -> Tensor:
    return torch.cat(
        [
            model.encode_image(image[i : i + chunk] * 2 - 1, streams[i : i + chunk])
            for i in range(0, len(image), chunk)
        ]
    )


def _inpainting_input(
    model: LatentDiffusion,
    image: Tensor | None,
    mask: Tensor | None,
    shape: tuple[int, ...],
    streams: Streams,
    chunk: int,
) -> Tensor:
    """The further channels of an inpainting U-Net; without a mask, everything is to be painted."""
    f = model.config.autoencoder.downsampling
    size = (shape[2] * f, shape[3] * f)
    image = torch.full((shape[0], 3, *size), 0.5) if image is None else image
    mask = torch.ones(shape[0], 1, *size) if mask is None else mask
    return torch.cat(
        [
            inpainting_condition(model, image[i : i + chunk], mask[i : i + chunk], streams[i : i + chunk])
            for i in range(0, len(image), chunk)
        ]
    )
