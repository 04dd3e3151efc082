"""The model: a dataclass of its conditioner, networks, noise schedule and configuration.

CompVis's counterpart is `LatentDiffusion` in `ldm.models.diffusion.ddpm`, which is also the trainer; this
class only holds the parts. `dataclasses.replace(model, unet=mine)` replaces one of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.condition import Condition
from ldm_core.conditioners.text import TextConditioner
from ldm_core.conditioners.unconditional import Unconditional
from ldm_core.config import LatentDiffusionConfig
from ldm_core.nn.placement import lay_out
from ldm_core.noise import Generators
from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.protocols import Autoencoder, Conditioner, NoisePredictor, TextEncoder, Tokenizer


@dataclass(init=False, repr=False, eq=False)
class LatentDiffusion:
    """The parts of a model. Each may be replaced by any object with the interface in `ldm_core.protocols`.

    `tokenizer` and `text_encoder` are shortcuts to those of a text conditioner: passed to the constructor or
    to `dataclasses.replace`, they replace the conditioner's own. Without them and without a conditioner, the
    model is unconditional.
    """

    conditioner: Conditioner
    unet: NoisePredictor
    autoencoder: Autoencoder
    noise_schedule: NoiseSchedule
    config: LatentDiffusionConfig

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        text_encoder: TextEncoder | None = None,
        unet: NoisePredictor | None = None,
        autoencoder: Autoencoder | None = None,
        noise_schedule: NoiseSchedule | None = None,
        config: LatentDiffusionConfig | None = None,
        conditioner: Conditioner | None = None,
    ) -> None:
        self.conditioner = _conditioner(conditioner, tokenizer, text_encoder)
        uses_autoencoder = getattr(self.conditioner, "with_autoencoder", None)
        if uses_autoencoder is not None:
            self.conditioner = uses_autoencoder(autoencoder)
        uses_unet = getattr(self.conditioner, "with_unet", None)
        if uses_unet is not None:
            self.conditioner = uses_unet(unet)
        self.unet = unet  # type: ignore[assignment]
        self.autoencoder = autoencoder  # type: ignore[assignment]
        self.noise_schedule = noise_schedule  # type: ignore[assignment]
        self.config = config  # type: ignore[assignment]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the text conditioner. Raises AttributeError for a model without one."""
        return self._text("tokenizer").tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self.conditioner = _conditioner(self.conditioner, tokenizer, None)

    @property
    def text_encoder(self) -> Any:
        """The text encoder of the text conditioner. Raises AttributeError for a model without one."""
        return self._text("text_encoder").text_encoder

    @text_encoder.setter
    def text_encoder(self, text_encoder: TextEncoder) -> None:
        self.conditioner = _conditioner(self.conditioner, None, text_encoder)

    def _text(self, part: str) -> Any:
        if not hasattr(self.conditioner, part):
            kind = type(self.conditioner).__name__
            raise AttributeError(f"this model takes no text: its conditioner {kind} has no {part}")
        return self.conditioner

    def __repr__(self) -> str:
        parts = {"conditioner": self.conditioner, "unet": self.unet, "autoencoder": self.autoencoder}
        named = ", ".join(f"{name}={type(part).__name__}" for name, part in parts.items())
        count = sum(p.numel() for module in self.modules.values() for p in module.parameters())
        dtype = str(self.dtype).removeprefix("torch.")
        return f"LatentDiffusion({named}, {count / 1e6:.1f}M parameters, {dtype} on {self.device})"

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The parts that are torch modules, by name: those of the conditioner, "unet", "autoencoder"."""
        parts: dict[str, Any] = {
            **self.conditioner.modules,
            "unet": self.unet,
            "autoencoder": self.autoencoder,
        }
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    @property
    def device(self) -> torch.device:
        """The device of the U-Net's weights; the CPU if no part has any."""
        return self.weight_of("unet").device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the U-Net's weights; float32 if no part has any."""
        return self.weight_of("unet").dtype

    def weight_of(self, part: str) -> Tensor:
        """A weight of this part, or of another one if this is a plain function without weights."""
        modules = self.modules
        for name in (part, *modules):
            weight = next(modules[name].parameters(), None) if name in modules else None
            if weight is not None:
                return weight
        return torch.empty(0)

    def to(self, *args: Any, **kwargs: Any) -> LatentDiffusion:
        """Move or cast the networks in place and return the model. Arguments as in `torch.nn.Module.to`.

        Networks that are cast to another dtype are laid out in memory as `load` does.
        """
        for module in self.modules.values():
            before = _dtype(module)
            module.to(*args, **kwargs)
            if _dtype(module) != before:
                lay_out(module)
        return self

    def condition(self, inputs: Any) -> Condition:
        """The Condition for these inputs, one row per image, in the U-Net's device and dtype."""
        return self.conditioner(inputs).to(self.device, self.dtype)

    def encode_image(self, images: Tensor, generator: Generators = None) -> Tensor:
        """Encode images (B, 3, H, W) in [-1, 1] to scaled latents (B, C, H/f, W/f), as the U-Net takes them.

        z = E(x) of the latent diffusion paper (arXiv:2112.10752, section 3.1), times the latent scale.
        With a generator, or one per image, sample from the encoder's Gaussian, as CompVis does; without, use
        its mode.
        """
        posterior = self.autoencoder.encode(images.to(self.weight_of("autoencoder")))
        z = posterior.mode() if generator is None else posterior.sample(generator)
        return z * self.config.latent_scale

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Decode scaled latents (B, C, h, w) to images (B, 3, h*f, w*f), in about [-1, 1].

        x = D(z) of the latent diffusion paper (arXiv:2112.10752, section 3.1), z being latent / latent_scale.
        """
        z = latent / self.config.latent_scale
        return self.autoencoder.decode(z.to(self.weight_of("autoencoder")))


def _dtype(module: nn.Module) -> torch.dtype | None:
    weight = next(module.parameters(), None)
    return None if weight is None else weight.dtype


def _conditioner(
    conditioner: Conditioner | None, tokenizer: Tokenizer | None, text_encoder: TextEncoder | None
) -> Conditioner:
    """The conditioner with its parts replaced by those that are not None."""
    if tokenizer is None and text_encoder is None:
        return Unconditional() if conditioner is None else conditioner
    if not isinstance(conditioner, TextConditioner):
        return TextConditioner(tokenizer, text_encoder)  # type: ignore[arg-type]
    return replace(
        conditioner,
        tokenizer=conditioner.tokenizer if tokenizer is None else tokenizer,
        text_encoder=conditioner.text_encoder if text_encoder is None else text_encoder,
    )
