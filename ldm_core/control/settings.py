"""Convert diffusers' `config.json` of a ControlNet to a configuration, and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ldm_core.checkpoint.setting_values import Settings, block_kinds, one_of, reading, whole, wholes
from ldm_core.control.config import ControlNetConfig
from ldm_core.unet.settings import unet_config, unet_settings

CLASS = "ControlNetModel"
# The class's own defaults, for settings that a file may leave out.
_DEFAULTS: dict[str, Any] = {
    "in_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "layers_per_block": 2,
    "cross_attention_dim": 1280,
    "attention_head_dim": 8,
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}


def controlnet_config(settings: Settings) -> ControlNetConfig:
    """From the settings of `ControlNetModel`. Raises CheckpointError for missing or unsupported ones."""
    settings = {**_DEFAULTS, **settings}
    order = settings["controlnet_conditioning_channel_order"]
    one_of(CLASS, "controlnet_conditioning_channel_order", order, {"rgb": 0})
    with reading(CLASS):
        up = [kind.replace("Down", "Up") for kind in reversed(block_kinds(settings, "down_block_types"))]
        same = {"_class_name": "UNet2DConditionModel", "up_block_types": up}
        unet = unet_config({**settings, **same, "out_channels": settings["in_channels"]})
        widths = "conditioning_embedding_out_channels"
        return ControlNetConfig(
            **asdict(unet),
            hint_channels=whole(settings, "conditioning_channels"),
            hint_widths=tuple(wholes(widths, list(settings[widths]))),
            global_pool=settings["global_pool_conditions"],
        )


def controlnet_settings(config: ControlNetConfig) -> dict[str, Any]:
    """The inverse of `controlnet_config`."""
    settings = unet_settings(config.unet, 0)
    for name in ("out_channels", "sample_size", "up_block_types", "center_input_sample"):
        del settings[name]
    return dict(
        sorted(
            {
                **settings,
                "_class_name": CLASS,
                "conditioning_channels": config.hint_channels,
                "conditioning_embedding_out_channels": list(config.hint_widths),
                "controlnet_conditioning_channel_order": "rgb",
                "global_pool_conditions": config.global_pool,
            }.items()
        )
    )
