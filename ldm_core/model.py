"""The model: three networks, a tokenizer and a noise schedule in one plain bundle; and how to load it.

CompVis's counterpart is `LatentDiffusion` of `ldm.models.diffusion.ddpm`, which is also the trainer; here
it only holds the parts. `dataclasses.replace(model, unet=mine)` exchanges one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.config import LatentDiffusionConfig
from ldm_core.noise import Generators
from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.protocols import Autoencoder, NoisePredictor, TextEncoder, Tokenizer

BUNDLED = "emoji.safetensors"


@dataclass
class LatentDiffusion:
    """The bundle of parts. Each may be exchanged for anything that fits its seam in `ldm_core.protocols`."""

    tokenizer: Tokenizer
    text_encoder: TextEncoder
    unet: NoisePredictor
    autoencoder: Autoencoder
    noise_schedule: NoiseSchedule
    config: LatentDiffusionConfig

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The parts that are torch modules, by field name."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    @property
    def device(self) -> torch.device:
        """Where the U-Net's weights are; the CPU if no part has any."""
        return self.weight_of("unet").device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the U-Net's weights; float32 if no part has any."""
        return self.weight_of("unet").dtype

    def weight_of(self, part: str) -> Tensor:
        """A weight of this part or, if it is a plain function without any, of another one."""
        modules = self.modules
        for name in (part, *modules):
            weight = next(modules[name].parameters(), None) if name in modules else None
            if weight is not None:
                return weight
        return torch.empty(0)

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> LatentDiffusion:
        """Move or cast the networks, in place as torch modules do, and return the model."""
        for module in self.modules.values():
            module.to(device=device, dtype=dtype)
        return self

    def encode_image(self, images: Tensor, generator: Generators = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] to the U-Net's latents (B, C, H/f, W/f): the autoencoder's, scaled.

        With a generator, or one per image, a draw from the encoder's Gaussian, as CompVis does; without,
        its mode.
        """
        posterior = self.autoencoder.encode(images.to(self.weight_of("autoencoder")))
        z = posterior.mode() if generator is None else posterior.sample(generator)
        return z * self.config.latent_scale

    def decode_latent(self, latent: Tensor) -> Tensor:
        """The U-Net's latents (B, C, h, w) to images (B, 3, h*f, w*f), about [-1, 1]; the inverse scaling."""
        z = latent / self.config.latent_scale
        return self.autoencoder.decode(z.to(self.weight_of("autoencoder")))
