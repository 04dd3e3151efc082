"""Convert diffusers' `config.json` of an autoencoder to a configuration, and back.

Unsupported values of the settings below raise an error that names the setting, and so does a missing setting
without a default in diffusers.
"""

from __future__ import annotations

from typing import Any

from ldm_core.autoencoder.config import AutoencoderConfig, AutoencoderVQConfig
from ldm_core.checkpoint.folder import AUTOENCODER, VQ_AUTOENCODER
from ldm_core.checkpoint.setting_values import (
    Settings,
    block_kinds,
    block_widths,
    check_activation,
    check_fixed,
    level_widths,
    multiple,
    one_number,
    reading,
    whole,
)
from ldm_core.errors import ConfigError
from ldm_core.support.printable import shown

# Settings that change the network, with their only supported value (None: absent).
_FIXED = {
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "norm_num_groups": 32,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}
_VQ_FIXED = {"norm_num_groups": 32, "norm_type": "group"}


def autoencoder_config(settings: Settings) -> AutoencoderConfig:
    """From `AutoencoderKL`'s settings. Raises CheckpointError for missing or unsupported ones."""
    check_fixed(AUTOENCODER, settings, _FIXED)
    check_activation(AUTOENCODER, settings)
    with reading(AUTOENCODER):
        return AutoencoderConfig(embed_dim=whole(settings, "latent_channels"), **_sizes(settings))


def vq_config(settings: Settings) -> AutoencoderVQConfig:
    """From `VQModel`'s settings, with the same errors.

    `lookup_from_codebook` and `force_upcast` do not change what the network computes from latents.
    """
    check_fixed(VQ_AUTOENCODER, settings, _VQ_FIXED)
    check_activation(VQ_AUTOENCODER, settings)
    with reading(VQ_AUTOENCODER):
        same = settings.get("vq_embed_dim") is None
        return AutoencoderVQConfig(
            embed_dim=whole(settings, "latent_channels" if same else "vq_embed_dim"),
            n_embed=whole(settings, "num_vq_embeddings", 256),
            middle_attention=settings.get("mid_block_add_attention", True),
            **_sizes(settings),
        )


def _sizes(settings: Settings) -> dict[str, Any]:
    """The fields that both autoencoders have, without embed_dim."""
    widths, types = block_widths(settings), block_kinds(settings, "down_block_types")
    up = block_kinds(settings, "up_block_types")
    mirrored = [kind.replace("UpDecoder", "DownEncoder") for kind in reversed(up)]
    if types != mirrored or not set(types) <= {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"}:
        raise ConfigError(f"blocks {shown(types)} and {shown(up)} are not those of an autoencoder")
    attends = [level for level, kind in enumerate(types) if kind.startswith("Attn")]
    resolution = AutoencoderConfig.resolution
    return {
        "z_channels": whole(settings, "latent_channels"),
        "in_channels": whole(settings, "in_channels", 3),
        "out_ch": whole(settings, "out_channels", 3),
        "ch": widths[0],
        "ch_mult": tuple(multiple(width, widths[0]) for width in widths),
        "num_res_blocks": one_number("layers_per_block", settings["layers_per_block"]),
        "attn_resolutions": tuple(resolution // 2**level for level in attends),
    }


def autoencoder_settings(config: AutoencoderConfig, image_size: int, latent_scale: float) -> dict[str, Any]:
    """The inverse of `autoencoder_config` and `vq_config`.

    image_size: in pixels; latent_scale: the factor of the latents.
    """
    attends = [config.has_attention(level) for level in range(len(config.ch_mult))]
    settings = {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": level_widths("autoencoder", config.ch, config.ch_mult),
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "in_channels": config.in_channels,
        "latent_channels": config.z_channels,
        "layers_per_block": config.num_res_blocks,
        "norm_num_groups": 32,
        "out_channels": config.out_ch,
        "sample_size": image_size,
        "scaling_factor": latent_scale,
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
    }
    if isinstance(config, AutoencoderVQConfig):
        settings |= {
            "_class_name": "VQModel",
            "mid_block_add_attention": config.middle_attention,
            "num_vq_embeddings": config.n_embed,
            "vq_embed_dim": config.embed_dim,
        }
    elif config.embed_dim != config.z_channels:
        raise ConfigError(
            f"an AutoencoderKL has one number of channels of latents, and this one has embed_dim "
            f"{config.embed_dim} and z_channels {config.z_channels}"
        )
    return settings
