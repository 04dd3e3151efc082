"""The autoencoder's section in CompVis's YAML configurations, `first_stage_config`."""

from __future__ import annotations

from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.checkpoint.yaml_values import Params, section
from ldm_core.errors import ConfigError


def autoencoder_in_yaml(model: Params) -> AutoencoderConfig:
    """`AutoencoderKL`."""
    params = section(model, "first_stage_config", "params")
    dd = section(params, "ddconfig")
    if not dd.get("double_z", True):
        raise ConfigError("an autoencoder without double_z is not a KL autoencoder")
    return AutoencoderConfig(
        embed_dim=params["embed_dim"],
        z_channels=dd["z_channels"],
        resolution=dd["resolution"],
        in_channels=dd["in_channels"],
        out_ch=dd["out_ch"],
        ch=dd["ch"],
        ch_mult=tuple(dd["ch_mult"]),
        num_res_blocks=dd["num_res_blocks"],
        attn_resolutions=tuple(dd["attn_resolutions"]),
    )
