"""Small configurations of every kind of model."""

from __future__ import annotations

from dataclasses import replace

from ldm_core.config import AutoencoderConfig, LatentDiffusionConfig, TextEncoderConfig, UNetConfig

SMALL_SD1 = LatentDiffusionConfig(
    text_encoder=TextEncoderConfig(width=64, layers=3, heads=4),
    unet=UNetConfig(model_channels=32, num_heads=4, context_dim=64),
    autoencoder=AutoencoderConfig(ch=32),
    image_size=64,
)
SMALL_SD2 = LatentDiffusionConfig(
    text_encoder=TextEncoderConfig(
        width=64, layers=3, heads=4, activation="gelu", clip_skip=1, pad_token_id=0, projection_dim=64
    ),
    unet=UNetConfig(
        model_channels=32,
        num_heads=None,
        num_head_channels=16,
        context_dim=64,
        use_linear_in_transformer=True,
    ),
    autoencoder=AutoencoderConfig(ch=32),
    prediction="v",
    image_size=64,
)
SMALL = {
    "sd1": SMALL_SD1,
    "sd1-inpaint": replace(SMALL_SD1, unet=replace(SMALL_SD1.unet, in_channels=9)),
    "sd2": SMALL_SD2,
    "sd2-depth": replace(SMALL_SD2, unet=replace(SMALL_SD2.unet, in_channels=5)),
    "sd2-unclip": replace(SMALL_SD2, unet=replace(SMALL_SD2.unet, adm_in_channels=48)),
    "x4-upscaler": replace(
        SMALL_SD2,
        unet=replace(
            SMALL_SD2.unet,
            in_channels=7,
            channel_mult=(1, 2, 2, 4),
            attention_resolutions=(2, 4, 8),
            num_heads=8,
            num_head_channels=None,
            disable_self_attentions=(True, True, True, False),
            num_classes=10,
        ),
        autoencoder=AutoencoderConfig(ch=32, ch_mult=(1, 2, 4)),
    ),
}

# Two levels of one block each, for tests of what is in files rather than of what networks compute.
TINY = {
    kind: replace(
        config,
        unet=replace(config.unet, channel_mult=(1, 2), num_res_blocks=1),
        autoencoder=replace(config.autoencoder, ch_mult=(1, 2), num_res_blocks=1),
        image_size=32,
    )
    for kind, config in SMALL.items()
    if kind != "x4-upscaler"
} | {"x4-upscaler": SMALL["x4-upscaler"]}
