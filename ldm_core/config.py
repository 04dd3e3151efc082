"""The configuration of a whole model, and the published presets. Each network's folder has its own.

Field names are those of CompVis's `v1-inference.yaml` wherever it has one. Each preset lists only its
differences from another one.

Letters used in shapes throughout the package:

    B batch   C channels   H, W pixels   h, w latent rows and columns   N tokens or positions
    D head size   T diffusion steps of the noise schedule   n sampling steps

Sources: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"
(arXiv:2112.10752), and the configuration files of CompVis and Stability AI.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.clip.config import SD2_TEXT_ENCODER, Activation, ImageEncoderConfig, TextEncoderConfig
from ldm_core.errors import ConfigError
from ldm_core.noise_schedule import BetaSchedule, NoiseScheduleConfig, PredictionType
from ldm_core.support.limits import MAX_SCALE, MAX_SIZE, build, is_number, require, require_whole
from ldm_core.support.printable import shown
from ldm_core.unet.config import UNetConfig

__all__ = [
    "PRESETS",
    "Activation",
    "AutoencoderConfig",
    "BetaSchedule",
    "ConfigError",
    "ImageEncoderConfig",
    "LatentDiffusionConfig",
    "NoiseScheduleConfig",
    "PredictionType",
    "TextEncoderConfig",
    "UNetConfig",
    "preset",
]

_PARTS: dict[str, type[Any]] = {
    "text_encoder": TextEncoderConfig,
    "unet": UNetConfig,
    "autoencoder": AutoencoderConfig,
    "noise_schedule": NoiseScheduleConfig,
}


@dataclass(frozen=True)
class LatentDiffusionConfig:
    """A whole model: its networks, its noise schedule, and how they are combined."""

    text_encoder: TextEncoderConfig | None = field(default_factory=TextEncoderConfig)  # None: no text
    unet: UNetConfig = field(default_factory=UNetConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    noise_schedule: NoiseScheduleConfig = field(default_factory=NoiseScheduleConfig)
    latent_scale: float = (
        0.18215  # CompVis's scale_factor: U-Net latents = latent_scale * autoencoder latents
    )
    prediction: PredictionType = "eps"
    image_size: int = 512  # training resolution in pixels

    def __post_init__(self) -> None:
        for name, kind in _PARTS.items():
            value = getattr(self, name)
            if name == "text_encoder" and value is None:
                continue
            require(isinstance(value, kind), f"{name} must be a {kind.__name__}, not {shown(value)}")
        require(
            isinstance(self.prediction, str) and self.prediction in get_args(PredictionType),
            f"prediction must be 'eps', 'v' or 'x0', not {shown(self.prediction)}",
        )
        require(
            is_number(self.latent_scale) and 0 < self.latent_scale <= MAX_SCALE,
            f"latent_scale must be a positive number up to {MAX_SCALE:g}, not {shown(self.latent_scale)}",
        )
        require_whole("model", self, "image_size", 1, MAX_SIZE)
        if self.text_encoder is not None:
            require(
                self.unet.context_dim == self.text_encoder.width,
                f"the unet expects context vectors of size {self.unet.context_dim} (context_dim), "
                f"but the text encoder outputs vectors of size {self.text_encoder.width} (width)",
            )
        require(
            self.unet.out_channels == self.autoencoder.embed_dim,
            f"the unet outputs {self.unet.out_channels} channels (out_channels), "
            f"but the autoencoder's latents have {self.autoencoder.embed_dim} (embed_dim)",
        )

    @property
    def size_multiple(self) -> int:
        """Height and width in pixels must be multiples of this."""
        return self.autoencoder.downsampling * self.unet.downsampling

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LatentDiffusionConfig:
        """The inverse of `to_dict`. Raises ConfigError for invalid values, naming unknown fields."""
        require(isinstance(data, dict), f"expected a mapping, not {shown(data)}")
        values = {
            key: build(_PARTS[key], value) if key in _PARTS and value is not None else value
            for key, value in data.items()
        }
        return build(cls, values)


SD1 = LatentDiffusionConfig()
SD1_INPAINT = replace(SD1, unet=replace(SD1.unet, in_channels=9))

SD2_BASE = replace(
    SD1,
    text_encoder=SD2_TEXT_ENCODER,
    unet=replace(
        SD1.unet, num_heads=None, num_head_channels=64, context_dim=1024, use_linear_in_transformer=True
    ),
)
SD2_V = replace(SD2_BASE, prediction="v", image_size=768)
SD2_INPAINT = replace(SD2_BASE, unet=replace(SD2_BASE.unet, in_channels=9))
SD2_DEPTH = replace(SD2_BASE, unet=replace(SD2_BASE.unet, in_channels=5))
SD2_UNCLIP_H = replace(SD2_V, unet=replace(SD2_V.unet, adm_in_channels=2048))
SD2_UNCLIP_L = replace(SD2_V, unet=replace(SD2_V.unet, adm_in_channels=1536))
X4_UPSCALER = replace(
    SD2_V,
    unet=replace(
        SD2_V.unet,
        in_channels=7,
        model_channels=256,
        channel_mult=(1, 2, 2, 4),
        attention_resolutions=(2, 4, 8),
        num_heads=8,
        num_head_channels=None,
        disable_self_attentions=(True, True, True, False),
        num_classes=1000,
    ),
    autoencoder=replace(SD2_V.autoencoder, ch_mult=(1, 2, 4)),
    noise_schedule=NoiseScheduleConfig(linear_start=0.0001, linear_end=0.02),
    latent_scale=0.08333,
    image_size=512,
)

PRESETS: dict[str, LatentDiffusionConfig] = {
    "sd1": SD1,
    "sd1-inpaint": SD1_INPAINT,
    "sd2-base": SD2_BASE,
    "sd2-v": SD2_V,
    "sd2-inpaint": SD2_INPAINT,
    "sd2-depth": SD2_DEPTH,
    "sd2-unclip-h": SD2_UNCLIP_H,
    "sd2-unclip-l": SD2_UNCLIP_L,
    "x4-upscaler": X4_UPSCALER,
}


def preset(name: str) -> LatentDiffusionConfig:
    """The preset with this name. Raises ConfigError that lists the known names."""
    if name not in PRESETS:
        raise ConfigError(f"unknown model configuration {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
