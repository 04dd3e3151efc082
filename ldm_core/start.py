"""Check and encode a request: everything that happens before the first step of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.conditioners.prompt_syntax import PromptSyntax
from ldm_core.config import LatentDiffusionConfig
from ldm_core.control.ip_adapter import ImagePrompt, prepare_image_prompt
from ldm_core.control.run import RunningControls, prepare_controls, with_styles
from ldm_core.images import image_to_tensor, mask_to_tensor
from ldm_core.inpainting import KnownPart, inpainting_condition, latent_mask
from ldm_core.model import LatentDiffusion
from ldm_core.noise import generators, image_seeds, randn
from ldm_core.request import Request, Timesteps
from ldm_core.request_condition import Conditions, RequestCondition
from ldm_core.schedulers import Scheduler
from ldm_core.schedulers.spacing import truncate


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
    phases: tuple[Conditions, ...] = ()  # of prompts that change or have alternatives
    weights: Tensor | None = None  # with `others`, of `ldm_core.guidance.Composition`
    others: tuple[tuple[Condition, Tensor], ...] = ()
    controls: RunningControls | None = None
    image_prompt: ImagePrompt | None = None

    def at_step(self, index: int) -> Start:
        """The start with the conditions and the controls of step `index`, counted from 0."""
        start = self
        if self.phases:
            now = next((phase for phase in self.phases if index < (phase.last or 0)), self.phases[-1])
            start = replace(self, cond=now.cond, uncond=now.uncond, weights=now.weights, others=now.others)
        if start.controls is None:
            return start
        return replace(start, controls=start.controls.at(index, len(self.timesteps)))

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
    syntax: PromptSyntax | None = None,
) -> Start:
    """Check a request and compute its initial state. Raises ValueError for invalid requests.

    The generator of each image draws its initial noise first, so txt2img, img2img and inpaint start with the
    same noise.
    """
    conditioning = RequestCondition(model, request, batch_size, clip_skip, syntax)
    count = conditioning.count * request.num_images
    image, mask = _pixels(request, count)
    if conditioning.hides_masked and mask is not None:
        mask = (mask >= 0.5).float()  # as the conditioner takes it
    height, width = _size(model.config, request, image, conditioning.latent_size())
    seeds = image_seeds(request.seed, count)
    f = model.config.autoencoder.downsampling
    shape = (count, model.config.unet.out_channels, height // f, width // f)
    draws = generators(seeds)
    noise = _checked(request.noise, "noise", shape)
    state = torch.promote_types(model.dtype, torch.float32)  # latents have at least float32 precision
    noise = (randn(shape, draws) if noise is None else noise).to(model.device, state)
    replacement = _checked(request.latent, "latent", shape)
    start, pairs = _timesteps(model, scheduler, request)

    phases = conditioning.encode(draws, len(pairs))
    chunk = batch_size or count
    latent, known = noise, None
    sees_mask = conditioning.takes_mask and phases[0].cond.concat is None
    if sees_mask:
        concat = _inpainting_input(model, image, mask, shape, draws, chunk).to(model.device, model.dtype)
        phases = [phase.with_concat(concat) for phase in phases]
    _check_condition(model.config, phases[0].cond, shape)
    steered = _steered(model, request, phases, shape, conditioning.guidance_scale != 1)
    sees_mask = sees_mask or conditioning.hides_masked
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
        guidance_scale=conditioning.guidance_scale,
        image=image,
        mask=mask,
        known=known,
        **steered,
    )


def _steered(
    model: LatentDiffusion, request: Request, phases: list[Conditions], shape: tuple[int, ...], guided: bool
) -> dict[str, Any]:
    """The fields of `Start` for conditions (with the tokens of styles), controls and the image prompt."""
    count, picture = shape[0], (request.image_prompt, request.image_scale)
    controls = prepare_controls(request.controls, model.unet, (shape[2], shape[3]), count, request.num_images)
    steered = []
    for phase in phases:
        cond, uncond, others = phase.cond, phase.uncond, [other for other, _ in phase.others]
        if controls is not None:
            others = [with_styles(controls, other, other)[1] for other in others]
            _, cond, uncond = with_styles(controls, cond, uncond)
        sides = zip(
            (other.on_side(True, count) for other in others), (weights for _, weights in phase.others)
        )
        steered.append(
            replace(
                phase,
                cond=cond.on_side(True, count),
                uncond=uncond.on_side(False, count),
                others=tuple(sides),
            )
        )
    if controls is not None:
        controls = with_styles(controls, phases[0].cond, phases[0].uncond)[0]
    prompt = prepare_image_prompt(model.unet, *picture, guided=guided)
    return {
        "cond": steered[0].cond,
        "uncond": steered[0].uncond,
        "phases": () if phases[0].last is None else tuple(steered),
        "controls": controls,
        "image_prompt": prompt,
    }


def _timesteps(
    model: LatentDiffusion, scheduler: Scheduler, request: Request
) -> tuple[float, list[tuple[float, float]]]:
    """The timestep at which a run starts, and its pairs (t, t_prev)."""
    pairs = request.timesteps
    pairs = scheduler.timesteps(model.noise_schedule, request.steps) if pairs is None else list(pairs)
    return truncate(pairs, request.strength)


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


def _size(
    config: LatentDiffusionConfig,
    request: Request,
    image: Tensor | None,
    latent_size: tuple[int, int] | None,
) -> tuple[int, int]:
    """Height and width in pixels, from the image, the condition, the request or the model."""
    f = config.autoencoder.downsampling
    if image is not None:
        fixed_by, fixed = "image", image.shape[2:]
    elif latent_size is not None:
        fixed_by, fixed = "condition", torch.Size(f * size for size in latent_size)
    else:
        fixed_by, fixed = "", None
    if fixed is None:
        height = config.image_size if request.height is None else request.height
        width = config.image_size if request.width is None else request.width
    else:
        height, width = fixed
        if (request.height or height, request.width or width) != (height, width):
            raise ValueError(
                f"the {fixed_by} fixes the size of {width}×{height} pixels, which contradicts "
                f"width={request.width} and height={request.height}"
            )
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
