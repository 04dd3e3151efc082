"""Check and encode a request: everything that happens before the first step of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.conditioners.text import TextConditioner
from ldm_core.config import LatentDiffusionConfig
from ldm_core.images import ImageInput, image_to_tensor, mask_to_tensor
from ldm_core.inpainting import KnownPart, inpainting_condition, latent_mask
from ldm_core.model import LatentDiffusion
from ldm_core.noise import generators, image_seeds, randn
from ldm_core.schedulers import Scheduler
from ldm_core.schedulers.spacing import truncate

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

    def recipe(self, image: int, start: Start, scheduler: Scheduler) -> dict[str, Any]:
        """The settings of one image as plain values, without tensors and images."""
        count, (height, width) = len(start.seeds), start.size
        plain = {
            "inputs": _one(self.inputs, image, count),
            "unconditional": _one(self.unconditional, image, count),
        }
        if isinstance(plain["inputs"], str):
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


def _one(inputs: Any, image: int, count: int) -> str | int | None:
    """The input of one of `count` images, if it is a plain value. Images of one input are consecutive."""
    if isinstance(inputs, list | tuple) and inputs and count % len(inputs) == 0:
        inputs = inputs[image * len(inputs) // count]
    return inputs if isinstance(inputs, str | int) else None


@dataclass(frozen=True)
class Start:
    """The initial state of a run. All tensors have one row per image."""

    latent: Tensor  # (B, C, h, w)
    timesteps: Timesteps
    seeds: list[int]
    size: tuple[int, int]  # height and width in pixels
    generators: list[torch.Generator]  # one per image
    cond: Condition
    uncond: Condition  # `cond` itself without guidance
    guidance_scale: float
    image: Tensor | None = None  # (B, 3, H, W) in [0, 1]
    mask: Tensor | None = None  # (B, 1, H, W) in [0, 1]
    known: KnownPart | None = None  # inpainting with a U-Net without a mask input

    def keep_known(self, latent: Tensor, t: float) -> Tensor:
        """The latent at timestep t, with the known part restored when inpainting."""
        return latent if self.known is None else self.known.put_back(latent, t)

    def keep_known_pixels(self, images: Tensor) -> Tensor:
        """Decoded images (B, 3, H, W) in [0, 1], with the original pixels where the mask is black."""
        if self.mask is None or self.image is None:
            return images
        blend = self.mask * images + (1 - self.mask) * self.image
        return torch.where(self.mask == 0, self.image, blend)


def prepare(
    model: LatentDiffusion,
    scheduler: Scheduler,
    request: Request,
    *,
    batch_size: int | None = None,
    clip_skip: int | None = None,
) -> Start:
    """Check a request and compute its initial state. Raises ValueError for invalid requests.

    The generator of each image draws its initial noise first, so txt2img, img2img and inpaint start with the
    same noise.
    """
    conditioning = _Conditioning(model, request, batch_size, clip_skip)
    count = conditioning.count * request.num_images
    image, mask = _pixels(request, count)
    height, width = _size(model.config, request, image)
    seeds = image_seeds(request.seed, count)
    f, channels = model.config.autoencoder.downsampling, model.config.unet.out_channels
    shape = (count, channels, height // f, width // f)
    draws = generators(seeds)
    state = torch.promote_types(model.dtype, torch.float32)  # latents have at least float32 precision
    noise = _checked(request.noise, "noise", shape)
    noise = (randn(shape, draws) if noise is None else noise).to(model.device, state)
    replacement = _checked(request.latent, "latent", shape)
    if request.timesteps is None:
        start, pairs = truncate(scheduler.timesteps(model.noise_schedule, request.steps), request.strength)
    else:
        start, pairs = truncate(list(request.timesteps), request.strength)

    cond, uncond = conditioning.encode()
    chunk = batch_size or count
    latent, known = noise, None
    sees_mask = conditioning.takes_mask and cond.concat is None
    if sees_mask:
        concat = _inpainting_input(model, image, mask, shape, draws, chunk).to(model.device, model.dtype)
        cond, uncond = replace(cond, concat=concat), replace(uncond, concat=concat)
    _check_condition(model.config, cond, shape)
    if image is not None and (request.strength < 1 or (mask is not None and not sees_mask)):
        x0 = _encode(model, image, draws, chunk).to(noise)
        if request.strength < 1:
            latent = model.noise_schedule.add_noise(x0, noise, start)
        if mask is not None and not sees_mask:
            known = KnownPart(latent_mask(mask, f).to(x0), x0, noise, model.noise_schedule)
            latent = known.put_back(latent, start)
    return Start(
        latent=latent if replacement is None else replacement.to(noise),
        timesteps=pairs,
        seeds=seeds,
        size=(height, width),
        generators=draws,
        cond=cond,
        uncond=uncond,
        guidance_scale=conditioning.guidance_scale,
        image=image,
        mask=mask,
        known=known,
    )


class _Conditioning:
    """The condition and unconditional condition of a request: checked here, computed by `encode`."""

    def __init__(
        self, model: LatentDiffusion, request: Request, batch_size: int | None, clip_skip: int | None
    ) -> None:
        self.model, self.request = model, request
        self.conditioner: Any = model.conditioner
        if isinstance(self.conditioner, TextConditioner):
            skip = self.conditioner.clip_skip if clip_skip is None else clip_skip
            self.conditioner = replace(self.conditioner, clip_skip=skip, batch_size=batch_size)
        elif clip_skip is not None:
            raise ValueError("clip_skip requires a text encoder, which this model lacks")
        self.count = self._count_inputs()
        self.unconditional = self._check_unconditional()
        if not isinstance(request.num_images, int) or request.num_images < 1:
            raise ValueError(f"num_images must be a positive int, not {request.num_images!r}")
        self.guidance_scale = self._scale()
        unet = model.config.unet
        self.takes_mask = unet.in_channels == 2 * unet.out_channels + 1
        given = request.condition
        if (
            unet.in_channels > unet.out_channels
            and not self.takes_mask
            and (given is None or given.concat is None)
        ):
            raise ValueError(
                f"this U-Net takes {unet.in_channels} channels: {unet.out_channels} of latents and "
                f"{unet.in_channels - unet.out_channels} from condition.concat, which is missing"
            )
        labels = unet.num_classes is not None or unet.adm_in_channels is not None
        by_conditioner = given is None and not isinstance(self.conditioner, TextConditioner)
        if labels and not by_conditioner and (given is None or given.vector is None):
            raise ValueError("this U-Net also takes class labels or vectors: pass them as condition.vector")

    def _count_inputs(self) -> int:
        request = self.request
        if request.condition is None:
            return int(self.conditioner.count(request.inputs))
        if request.inputs is not None:
            raise ValueError("pass inputs or a condition, not both")
        return request.condition.rows or 1

    def _check_unconditional(self) -> Any:
        """The inputs for the unconditional condition, or the condition itself, or None."""
        request = self.request
        if request.unconditional_condition is not None:
            if request.unconditional is not None:
                raise ValueError("pass unconditional inputs or an unconditional_condition, not both")
            given: Any = request.unconditional_condition
            rows = given.rows or 1
        else:
            default = self.conditioner.unconditional
            given = default if request.unconditional is None else request.unconditional
            if given is None:
                return None
            text = isinstance(self.conditioner, TextConditioner)
            rows = self.conditioner.count(given, "negative_prompt" if text else "unconditional")
        if rows not in (1, self.count):
            expected = "1" if self.count == 1 else f"1 or {self.count}"
            raise ValueError(f"expected {expected} negative prompt(s) for {self.count} prompt(s), got {rows}")
        return given

    def _scale(self) -> float:
        scale = self.request.guidance_scale
        if scale is None:
            return 1.0 if self.unconditional is None else 7.5
        if not isinstance(scale, Real) or not math.isfinite(scale):
            raise ValueError(f"guidance_scale must be a finite number, not {scale!r}")
        if self.unconditional is None and scale != 1:
            raise ValueError(
                f"guidance_scale {scale} needs an unconditional condition: pass unconditional= or "
                "unconditional_condition=, or guidance_scale=1"
            )
        return float(scale)

    def encode(self) -> tuple[Condition, Condition]:
        """Both conditions, with one row per image. Images of one input are consecutive."""
        request = self.request
        cond = self.conditioner(request.inputs) if request.condition is None else request.condition
        cond = self._rows(cond)
        if self.unconditional is None:
            return cond, cond
        other = self.unconditional
        other = other if isinstance(other, Condition) else self.conditioner(other)
        uncond = self._rows(other)
        # Fields that the unconditional condition lacks are shared.
        names = ("context", "vector", "concat")
        missing = {name: getattr(cond, name) for name in names if getattr(uncond, name) is None}
        return cond, replace(uncond, **missing)

    def _rows(self, condition: Condition) -> Condition:
        condition = condition.to(self.model.device, self.model.dtype)
        if condition.rows is None:
            return condition
        rows = list(range(self.count)) if condition.rows == self.count else [0] * self.count
        return condition[[row for row in rows for _ in range(self.request.num_images)]]


def _check_condition(config: LatentDiffusionConfig, cond: Condition, shape: tuple[int, ...]) -> None:
    """Raise ValueError if concat cannot be concatenated to latents of this shape (B, C, h, w)."""
    if cond.concat is None:
        return
    expected = (config.unet.in_channels - shape[1], *shape[2:])
    if tuple(cond.concat.shape[1:]) != expected:
        raise ValueError(
            f"expected condition.concat of (B, {', '.join(map(str, expected))}), got "
            f"{tuple(cond.concat.shape)}"
        )


def _pixels(request: Request, count: int) -> tuple[Tensor | None, Tensor | None]:
    """The image and mask of a request as tensors with one row per generated image."""
    if not isinstance(request.strength, Real):
        raise ValueError(f"strength must be a number in (0, 1], not {request.strength!r}")
    if request.image is None:
        if request.mask is not None:
            raise ValueError("a mask needs the image that it applies to")
        if request.strength != 1.0:
            raise ValueError(f"strength {request.strength} needs an image to start from")
        return None, None
    image = _rows(image_to_tensor(request.image), "image", count, request.num_images)
    if request.mask is None:
        return image, None
    mask = _rows(mask_to_tensor(request.mask), "mask", count, request.num_images)
    if mask.shape[2:] != image.shape[2:]:
        sizes = [f"{x.shape[3]}×{x.shape[2]}" for x in (mask, image)]
        raise ValueError(
            f"the mask has {sizes[0]} pixels, the image {sizes[1]}; they must have the same size"
        )
    return image, mask


def _rows(tensor: Tensor, name: str, count: int, num_images: int) -> Tensor:
    """Repeat a single row, or one row per prompt, to one row per image."""
    prompts = count // num_images
    if len(tensor) not in (1, prompts):
        raise ValueError(f"expected one {name} or one per prompt ({prompts}), got {len(tensor)}")
    return tensor.expand(prompts, -1, -1, -1).repeat_interleave(num_images, dim=0)


def _size(config: LatentDiffusionConfig, request: Request, image: Tensor | None) -> tuple[int, int]:
    """Height and width in pixels, from the image, the condition, the request or the model."""
    f = config.autoencoder.downsampling
    concat = None if request.condition is None else request.condition.concat
    if image is not None:
        height, width = image.shape[2:]
    elif concat is not None:
        height, width = (f * size for size in concat.shape[2:])
    else:
        height = config.image_size if request.height is None else request.height
        width = config.image_size if request.width is None else request.width
    require_size(config, height, width)
    return height, width


def require_size(config: LatentDiffusionConfig, height: int, width: int) -> None:
    """Raise ValueError, naming the nearest valid sizes, if the networks cannot process this size."""
    unit = config.size_multiple

    def nearest(size: int) -> str:
        below = size // unit * unit
        return f"{below} or {below + unit}" if below else f"{unit}"

    for name, size in (("height", height), ("width", width)):
        if not isinstance(size, int) or size < 1 or size % unit:
            hint = f"; nearest: {nearest(size)}" if isinstance(size, int) and size > 0 else ""
            raise ValueError(f"{name} must be a positive multiple of {unit} pixels, not {size!r}{hint}")


def _checked(tensor: Tensor | None, name: str, shape: tuple[int, ...]) -> Tensor | None:
    if tensor is None:
        return None
    tensor = torch.as_tensor(tensor)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"expected {name} of {shape}, got {tuple(tensor.shape)}")
    return tensor


def _encode(model: LatentDiffusion, image: Tensor, draws: list[torch.Generator], chunk: int) -> Tensor:
    parts = range(0, len(image), chunk)
    return torch.cat([model.encode_image(image[i : i + chunk] * 2 - 1, draws[i : i + chunk]) for i in parts])


def _inpainting_input(
    model: LatentDiffusion,
    image: Tensor | None,
    mask: Tensor | None,
    shape: tuple[int, ...],
    draws: list[torch.Generator],
    chunk: int,
) -> Tensor:
    """The additional channels of an inpainting U-Net; without a mask, all of the image is repainted."""
    f = model.config.autoencoder.downsampling
    size = (shape[2] * f, shape[3] * f)
    image = torch.full((shape[0], 3, *size), 0.5) if image is None else image
    mask = torch.ones(shape[0], 1, *size) if mask is None else mask
    parts = [slice(i, i + chunk) for i in range(0, len(image), chunk)]
    return torch.cat([inpainting_condition(model, image[i], mask[i], draws[i]) for i in parts])
