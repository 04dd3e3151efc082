"""The U-Net's section in CompVis's YAML configurations, `unet_config` with the class `UNetModel`."""

from __future__ import annotations

from ldm_core.checkpoint.yaml_values import Params, section
from ldm_core.errors import ConfigError
from ldm_core.unet.config import UNetConfig


def unet_in_yaml(model: Params) -> UNetConfig:
    """`UNetModel`."""
    params = section(model, "unet_config", "params")
    if not params.get("use_spatial_transformer"):
        raise ConfigError(
            "a U-Net without use_spatial_transformer is not supported: it has no text condition"
        )
    heads, head_channels = params.get("num_heads", -1), params.get("num_head_channels", -1)
    num_classes = params.get("num_classes")
    depth = params.get("transformer_depth", 1)
    if isinstance(depth, list) or isinstance(params["num_res_blocks"], list):
        raise ConfigError("transformer_depth and num_res_blocks must be one number for all levels")
    return UNetConfig(
        in_channels=params["in_channels"],
        out_channels=params["out_channels"],
        model_channels=params["model_channels"],
        channel_mult=tuple(params.get("channel_mult", (1, 2, 4, 8))),
        num_res_blocks=params["num_res_blocks"],
        attention_resolutions=tuple(params["attention_resolutions"]),
        # In CompVis's files -1 means "not set", and a head size overrides a number of heads.
        num_heads=heads if head_channels == -1 else None,
        num_head_channels=None if head_channels == -1 else head_channels,
        transformer_depth=depth,
        context_dim=params["context_dim"],
        use_linear_in_transformer=params.get("use_linear_in_transformer", False),
        disable_self_attentions=tuple(params.get("disable_self_attentions") or ()),
        num_classes=num_classes if isinstance(num_classes, int) else None,
        adm_in_channels=params.get("adm_in_channels") if num_classes == "sequential" else None,
    )
