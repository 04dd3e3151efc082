"""The published presets. Each lists only its differences from another one.

Sources: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"
(arXiv:2112.10752), and the configuration files of CompVis and Stability AI.
"""

from __future__ import annotations

from dataclasses import replace

from ldm_core.autoencoder.config import AutoencoderConfig, AutoencoderVQConfig
from ldm_core.clip.config import SD2_TEXT_ENCODER, Activation, ImageEncoderConfig, TextEncoderConfig
from ldm_core.errors import ConfigError
from ldm_core.model_config import LatentDiffusionConfig
from ldm_core.noise_schedule import BetaSchedule, NoiseScheduleConfig, PredictionType
from ldm_core.unet.config import UNetConfig

__all__ = [
    "PRESETS",
    "Activation",
    "AutoencoderConfig",
    "AutoencoderVQConfig",
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
