"""The published presets. Each lists only its differences from another one.

Sources: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"
(arXiv:2112.10752), and the configuration files of CompVis and Stability AI.
"""

from __future__ import annotations

from dataclasses import replace

from ldm_core.autoencoder.config import AutoencoderConfig, AutoencoderVQConfig
from ldm_core.bert.config import BERTConfig, LayoutConfig
from ldm_core.clip.config import (
    SD2_TEXT_ENCODER,
    VIT_H_14,
    VIT_L_14,
    Activation,
    ImageEncoderConfig,
    TextEncoderConfig,
)
from ldm_core.conditioners.class_embedder import ClassEmbedderConfig
from ldm_core.conditioners.depth import DepthConfig
from ldm_core.conditioners.grounding import GroundingConfig
from ldm_core.conditioners.instruction import InstructionConfig
from ldm_core.conditioners.low_resolution import LowResolutionConfig
from ldm_core.conditioners.masked_image import MaskedImageConfig
from ldm_core.conditioners.noised_image import NoisedImageConfig
from ldm_core.conditioners.retrieval import RetrievalConfig
from ldm_core.conditioners.semantic_map import SemanticMapConfig
from ldm_core.conditioners.unclip import UnclipConfig
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
INSTRUCT_PIX2PIX = replace(
    SD1, unet=replace(SD1.unet, in_channels=8), conditioner=InstructionConfig(), use_ema=True
)
GLIGEN = replace(SD1, unet=replace(SD1.unet, gated_self_attention=True), conditioner=GroundingConfig())

SD2_BASE = replace(
    SD1,
    text_encoder=SD2_TEXT_ENCODER,
    unet=replace(
        SD1.unet, num_heads=None, num_head_channels=64, context_dim=1024, use_linear_in_transformer=True
    ),
)
SD2_V = replace(SD2_BASE, prediction="v", image_size=768)
SD2_INPAINT = replace(SD2_BASE, unet=replace(SD2_BASE.unet, in_channels=9))
SD2_DEPTH = replace(SD2_BASE, unet=replace(SD2_BASE.unet, in_channels=5), conditioner=DepthConfig())
SD2_UNCLIP_H = replace(
    SD2_V,
    unet=replace(SD2_V.unet, adm_in_channels=2048),
    conditioner=UnclipConfig(width=1024, image_encoder=VIT_H_14.image_encoder),
)
SD2_UNCLIP_L = replace(
    SD2_V,
    unet=replace(SD2_V.unet, adm_in_channels=1536),
    conditioner=UnclipConfig(width=768, image_encoder=VIT_L_14.image_encoder),
)
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
    conditioner=NoisedImageConfig(),
)

# The models of the latent diffusion paper and its repository. Their U-Nets have heads of 32 channels.
_VQ_F4 = AutoencoderVQConfig(embed_dim=3, z_channels=3, ch_mult=(1, 2, 4), n_embed=8192)
_VQ_F8 = AutoencoderVQConfig(
    embed_dim=4, z_channels=4, ch_mult=(1, 2, 2, 4), attn_resolutions=(32,), n_embed=16384
)
_KL_F16 = AutoencoderConfig(
    embed_dim=16, z_channels=16, ch_mult=(1, 1, 2, 2, 4), attn_resolutions=(16,)
)  # fmt: skip
_UNET_F4 = UNetConfig(
    in_channels=3,
    out_channels=3,
    model_channels=192,
    channel_mult=(1, 2, 3, 5),
    attention_resolutions=(8, 4, 2),
    num_heads=None,
    num_head_channels=32,
    context_dim=None,
)


def _betas(start: float, end: float) -> NoiseScheduleConfig:
    return NoiseScheduleConfig(linear_start=start, linear_end=end)


CELEBA256 = LatentDiffusionConfig(
    text_encoder=None,
    unet=replace(_UNET_F4, model_channels=224, channel_mult=(1, 2, 3, 4)),
    autoencoder=_VQ_F4,
    noise_schedule=_betas(0.0015, 0.0195),
    latent_scale=1.0,
    image_size=256,
    use_ema=True,
)
FFHQ256 = LSUN_BEDS256 = CELEBA256
# Its checkpoint holds the latent scale, which was measured in training; 1.0 is not the value.
LSUN_CHURCHES256 = replace(
    CELEBA256,
    unet=replace(
        _UNET_F4,
        in_channels=4,
        out_channels=4,
        channel_mult=(1, 2, 2, 4, 4),
        attention_resolutions=(8, 4, 2, 1),
        num_heads=8,
        num_head_channels=None,
        use_scale_shift_norm=True,
        resblock_updown=True,
    ),
    autoencoder=SD1.autoencoder,
    noise_schedule=_betas(0.0015, 0.0155),
)
CIN256 = replace(
    CELEBA256,
    unet=replace(
        _UNET_F4,
        in_channels=4,
        out_channels=4,
        model_channels=256,
        channel_mult=(1, 2, 4),
        attention_resolutions=(4, 2, 1),
        context_dim=512,
    ),
    autoencoder=_VQ_F8,
    conditioner=ClassEmbedderConfig(classes=1000),
)
CIN256_V2 = replace(
    CELEBA256,
    unet=replace(_UNET_F4, num_heads=1, num_head_channels=None, context_dim=512),
    conditioner=ClassEmbedderConfig(classes=1001, null_class=1000),
    use_ema=False,
)
TEXT2IMG256 = replace(
    CELEBA256, text_encoder=BERTConfig(width=640, layers=32), unet=replace(_UNET_F4, context_dim=640)
)
TEXT2IMG_LARGE = replace(
    SD1,
    text_encoder=BERTConfig(width=1280, layers=32),
    unet=replace(SD1.unet, context_dim=1280),
    image_size=256,
)
LAYOUT2IMG256 = replace(
    CELEBA256,
    unet=replace(
        _UNET_F4, model_channels=128, channel_mult=(1, 2, 3, 4), transformer_depth=3, context_dim=512
    ),
    noise_schedule=_betas(0.0015, 0.0205),
    conditioner=LayoutConfig(width=512, layers=16),
)
SEMANTIC_SYNTHESIS256 = replace(
    CELEBA256,
    unet=replace(
        _UNET_F4,
        in_channels=6,
        model_channels=128,
        channel_mult=(1, 4, 8),
        attention_resolutions=(),  # only the middle attends
        num_heads=8,
        num_head_channels=None,
    ),
    noise_schedule=_betas(0.0015, 0.0205),
    conditioner=SemanticMapConfig(),
)
SEMANTIC_SYNTHESIS512 = replace(SEMANTIC_SYNTHESIS256, image_size=512)
BSR_SR = replace(
    CELEBA256,
    unet=replace(
        _UNET_F4, in_channels=6, model_channels=160, channel_mult=(1, 2, 2, 4), attention_resolutions=(8,)
    ),
    noise_schedule=_betas(0.0015, 0.0155),
    conditioner=LowResolutionConfig(),
)
INPAINTING_BIG = replace(
    CELEBA256,
    unet=replace(
        _UNET_F4,
        in_channels=7,
        model_channels=256,
        channel_mult=(1, 2, 3, 4),
        num_heads=8,
        num_head_channels=None,
        resblock_updown=True,
    ),
    autoencoder=replace(_VQ_F4, middle_attention=False),
    noise_schedule=_betas(0.0015, 0.0205),
    conditioner=MaskedImageConfig(),
)
RDM768 = replace(
    CELEBA256,
    unet=replace(
        _UNET_F4,
        in_channels=16,
        out_channels=16,
        model_channels=448,
        channel_mult=(1, 2, 3, 4),
        attention_resolutions=(4, 2, 1),
        context_dim=768,
    ),
    autoencoder=_KL_F16,
    noise_schedule=_betas(0.0015, 0.015),
    latent_scale=0.22765929,
    image_size=768,
    conditioner=RetrievalConfig(),
)

PRESETS: dict[str, LatentDiffusionConfig] = {
    "sd1": SD1,
    "sd1-inpaint": SD1_INPAINT,
    "instruct-pix2pix": INSTRUCT_PIX2PIX,
    "gligen": GLIGEN,
    "sd2-base": SD2_BASE,
    "sd2-v": SD2_V,
    "sd2-inpaint": SD2_INPAINT,
    "sd2-depth": SD2_DEPTH,
    "sd2-unclip-h": SD2_UNCLIP_H,
    "sd2-unclip-l": SD2_UNCLIP_L,
    "x4-upscaler": X4_UPSCALER,
    "celeba256": CELEBA256,
    "ffhq256": FFHQ256,
    "lsun-beds256": LSUN_BEDS256,
    "lsun-churches256": LSUN_CHURCHES256,
    "cin256": CIN256,
    "cin256-v2": CIN256_V2,
    "text2img256": TEXT2IMG256,
    "text2img-large": TEXT2IMG_LARGE,
    "layout2img256": LAYOUT2IMG256,
    "semantic-synthesis256": SEMANTIC_SYNTHESIS256,
    "semantic-synthesis512": SEMANTIC_SYNTHESIS512,
    "bsr-sr": BSR_SR,
    "inpainting-big": INPAINTING_BIG,
    "rdm768": RDM768,
}
# Presets whose latent scale was measured in training, and is stored in the checkpoint only.
MEASURED_SCALE = frozenset({"lsun-churches256"})


def preset(name: str) -> LatentDiffusionConfig:
    """The preset with this name. Raises ConfigError that lists the known names."""
    if name not in PRESETS:
        raise ConfigError(f"unknown model configuration {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
