"""A small picture with noise, the noise's level and a prompt as a Condition: Stable Diffusion's x4 upscaler.

The picture joins the U-Net's input, and the level is its class label. Stability AI's counterpart is
`LatentUpscaleDiffusion` of `ldm.models.diffusion.ddpm` (the configuration x4-upscaling).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.conditioners.fields import noise_level, one_image, require_one_size, split_fields
from ldm_core.conditioners.noise_augmentation import per_image, with_noise
from ldm_core.conditioners.text import TextConditioner
from ldm_core.noise import Generators
from ldm_core.noise_schedule import NoiseSchedule, NoiseScheduleConfig
from ldm_core.support.limits import require, require_whole
from ldm_core.support.printable import shown

LEVEL = 20  # the default noise level
SCHEDULE = NoiseScheduleConfig(linear_start=1e-4, linear_end=0.02)


@dataclass(frozen=True)
class NoisedImageConfig:
    """noise_schedule: of the noise on the small picture. levels: number of its timesteps in use."""

    noise_schedule: NoiseScheduleConfig = SCHEDULE
    levels: int = 350

    concat_channels: ClassVar[int] = 3

    def __post_init__(self) -> None:
        require(
            isinstance(self.noise_schedule, NoiseScheduleConfig),
            f"noised image: noise_schedule must be a NoiseScheduleConfig, not {shown(self.noise_schedule)}",
        )
        require_whole("noised image", self, "levels", 1, self.noise_schedule.timesteps)


@dataclass(frozen=True)
class NoisedImage:
    """Small pictures and prompts as a Condition with context, concat (B, 3, h, w) and vector (B,), its level.

    Inputs: {"prompt": str, "image": picture, "noise_level": int}, or a list of them with pictures of one
    size. The prompt is empty and the level 20 by default; a picture alone is {"image": picture}. The picture
    is a PIL image or a tensor (3, h, w) in [0, 1] of the latents' size. A prompt alone, as for guidance,
    gives the context alone.
    """

    text: TextConditioner
    config: NoisedImageConfig = NoisedImageConfig()
    schedule: NoiseSchedule = field(init=False, repr=False)

    unconditional: ClassVar[str] = ""
    guidance_scale: ClassVar[float] = 9.0
    draws_noise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", NoiseSchedule(self.config.noise_schedule))

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The networks of the conditioner, by name. They move and are saved with the model."""
        return self.text.modules

    def count(self, inputs: Any, name: str = "inputs") -> int:
        """The number of images of the inputs. Raises ValueError, naming `name`, for invalid inputs."""
        return len(self._parts(inputs, name)[0])

    def latent_size(self, inputs: Any) -> tuple[int, int] | None:
        """Rows and columns (h, w) of the picture; None for prompts alone."""
        images = self._parts(inputs, "inputs")[1]
        return None if images is None else (images.shape[2], images.shape[3])

    def upscaling_inputs(self, images: Tensor, prompt: Any, noise_level: Any) -> list[dict[str, Any]]:
        """The inputs for `Sampler.upscale`: one prompt for all images, one image for all prompts, or pairs.

        Raises ValueError for other numbers of them.
        """
        prompts = list(prompt) if isinstance(prompt, list | tuple) else ["" if prompt is None else prompt]
        if not prompts or (len(prompts) != len(images) and 1 not in (len(prompts), len(images))):
            raise ValueError(
                f"expected one prompt or one per image for {len(images)} image(s), got {len(prompts)}"
            )
        level = {} if noise_level is None else {"noise_level": noise_level}
        return [
            {"prompt": prompts[k % len(prompts)], "image": images[k % len(images)], **level}
            for k in range(max(len(prompts), len(images)))
        ]

    def __call__(self, inputs: Any, generators: Generators = None) -> Condition:
        """One row per generator. Each input may have several; None: one with a random seed for each input."""
        prompts, images, levels = self._parts(inputs, "inputs")
        text = self.text(prompts)
        if images is None:
            return text
        rows, draws = per_image(generators, len(prompts))
        labels = torch.tensor(levels)[rows]
        noised = with_noise(self.schedule, images[rows] * 2 - 1, labels, draws)
        return Condition(context=text[rows].context, concat=noised, vector=labels)

    def _parts(self, inputs: Any, name: str) -> tuple[list[str], Tensor | None, list[int]]:
        """Prompts, pictures (B, 3, h, w) in [0, 1] or None, and noise levels."""
        prompts, rows = split_fields(inputs, name, ("image", "noise_level"))
        if rows is None:
            return prompts, None, []
        images = [one_image(row.get("image"), name) for row in rows]
        require_one_size(images, name)
        levels = [noise_level(row, "noise_level", LEVEL, self.config.levels, name) for row in rows]
        return prompts, torch.cat(images), levels
