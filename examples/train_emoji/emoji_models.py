"""The networks of the emoji model, and of the CLIP that judges it: SD1's structure with fewer channels.

An eighth of a picture's side would leave 16 x 16 latents of 4 channels; a sixteenth leaves 8 x 8 of 16, as
many numbers, for which a U-Net needs a quarter of the arithmetic (the paper's kl-f8 and kl-f16, table 8).
"""

from __future__ import annotations

from dataclasses import replace

from ldm_core.clip.config import CLIPConfig
from ldm_core.config import (
    AutoencoderConfig,
    ImageEncoderConfig,
    LatentDiffusionConfig,
    TextEncoderConfig,
    UNetConfig,
)

SIZE = 128  # pixels of a side

TEXT_ENCODER = TextEncoderConfig(width=128, layers=4, heads=2, projection_dim=128)

MODEL = LatentDiffusionConfig(
    text_encoder=TEXT_ENCODER,
    unet=UNetConfig(
        in_channels=16,
        out_channels=16,
        model_channels=64,
        channel_mult=(2, 3, 3),
        num_res_blocks=1,
        num_heads=2,
        context_dim=128,
    ),
    autoencoder=AutoencoderConfig(
        embed_dim=16, z_channels=16, resolution=SIZE, ch=32, ch_mult=(1, 1, 2, 4, 4), num_res_blocks=1
    ),
    prediction="v",
    image_size=SIZE,
)

# The same on 16 x 16 latents of 4 channels, to compare with.
MODEL_F8 = replace(
    MODEL,
    unet=replace(MODEL.unet, in_channels=4, out_channels=4),
    autoencoder=replace(MODEL.autoencoder, embed_dim=4, z_channels=4, ch_mult=(1, 1, 2, 4)),
)

# Its text encoder is where the model's own begins; the image encoder is needed for that only.
CLIP = CLIPConfig(
    ImageEncoderConfig(image_size=64, patch_size=16, width=192, layers=4, heads=3, projection_dim=128),
    TEXT_ENCODER,
)

# Finer patches, other widths, fewer words: nothing of it is in the model that it looks at.
EVALUATOR = CLIPConfig(
    ImageEncoderConfig(image_size=64, patch_size=8, width=128, layers=4, heads=2, projection_dim=96),
    TextEncoderConfig(context_length=16, width=96, layers=2, heads=2, projection_dim=96),
)
