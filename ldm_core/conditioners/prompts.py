"""What the U-Net is told besides the noisy latent: the prompt, and for inpainting the known part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.config import LatentDiffusionConfig
from ldm_core.model import LatentDiffusion
from ldm_core.noise import Generators
from ldm_core.noise_schedule import NoiseSchedule


def as_prompts(prompt: Any, name: str = "prompt") -> list[str]:
    """A prompt or a list of them as a list. Raises ValueError for anything that is not a string."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, Sequence) or len(prompts) == 0:
        raise ValueError(f"{name} must be a string or a non-empty list of strings, not {prompt!r}")
    for i, one in enumerate(prompts):
        if not isinstance(one, str):
            raise ValueError(f"{name} {i} must be a string, not {type(one).__name__}")
    return list(prompts)


def encode_prompts(
    model: LatentDiffusion, prompts: Sequence[str], *, batch_size: int | None, clip_skip: int | None
) -> Tensor:
    """One context per prompt, (B, N, width). A prompt that occurs several times is encoded once."""
    distinct = list(dict.fromkeys(prompts))
    tokens = model.tokenizer(distinct).to(model.weight_of("text_encoder").device)
    options = {} if clip_skip is None else {"clip_skip": clip_skip}
    chunk = batch_size or len(distinct)
    contexts = torch.cat(
        [model.text_encoder(tokens[i : i + chunk], **options) for i in range(0, len(distinct), chunk)]
    )
    row = {prompt: i for i, prompt in enumerate(distinct)}
    return contexts[[row[prompt] for prompt in prompts]]


class SameContexts:
    """Gives equal contexts back as one tensor, whose keys and values attention layers then make only once.

    On a CPU only: elsewhere a comparison would wait for the device.
    """

    def __init__(self) -> None:
        self._known: list[Tensor] = []

    def __call__(self, context: Tensor) -> Tensor:
        if context.device.type != "cpu":
            return context
        for known in self._known:
            if known.dtype == context.dtype and torch.equal(known, context):
                return known
        self._known.append(context)
        return context


def require_size(config: LatentDiffusionConfig, height: int, width: int) -> None:
    """Raise ValueError, naming the nearest sizes that do, if the networks cannot take this size."""
    unit = config.size_multiple

    def nearest(size: int) -> str:
        below = size // unit * unit
        return f"{below} or {below + unit}" if below else f"{unit}"

    for name, size in (("height", height), ("width", width)):
        if not isinstance(size, int) or size < 1 or size % unit:
            hint = f"; nearest: {nearest(size)}" if isinstance(size, int) and size > 0 else ""
            raise ValueError(f"{name} must be a positive multiple of {unit} pixels, not {size!r}{hint}")


@dataclass(frozen=True)
class KnownPart:
    """Inpainting with a U-Net that knows no masks: whatever is known is put back after every step.

    Lugmayr et al. 2022 (arXiv:2201.09865), equation 8, as in `DDIMSampler.ddim_sampling`.
    mask: (B, 1, h, w), 1 where it is repainted. x0: the known latents (B, C, h, w). noise: standard normal.
    """

    mask: Tensor
    x0: Tensor
    noise: Tensor
    schedule: NoiseSchedule

    def put_back(self, latent: Tensor, t: float) -> Tensor:
        """The latent at timestep t (-1: the clean image) with its known part as it must be there."""
        known = self.schedule.add_noise(self.x0, self.noise, t)
        return self.mask * latent + (1 - self.mask) * known


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """A pixel mask (B, 1, H, W) to latents (B, 1, H/f, W/f): free where any pixel is."""
    return F.max_pool2d(mask, factor)


def inpainting_condition(
    model: LatentDiffusion, image: Tensor, mask: Tensor, generator: Generators
) -> Tensor:
    """What an inpainting U-Net takes after its latents: the mask and the masked image, (B, 1 + C, h, w).

    As in the original `inpaint_st.py`: the mask is cut at 0.5 and taken at the latents' resolution from
    the nearest pixel; the image is grey where it is to be repainted. image: in [0, 1].
    """
    hard = (mask >= 0.5).float()
    masked = model.encode_image((image * 2 - 1) * (1 - hard), generator)
    small = F.interpolate(hard, size=masked.shape[2:], mode="nearest").to(masked)
    return torch.cat([small, masked], dim=1)
