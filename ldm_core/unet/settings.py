"""Convert diffusers' `config.json` of a U-Net to a configuration, and back.

Unsupported values of the settings below raise an error that names the setting, and so does a missing setting
without a default in diffusers. Note that `attention_head_dim` is the number of heads.
"""

from __future__ import annotations

from typing import Any

from ldm_core.checkpoint.folder import UNET
from ldm_core.checkpoint.setting_values import (
    Settings,
    block_kinds,
    block_widths,
    check_activation,
    check_fixed,
    level_widths,
    multiple,
    one_number,
    one_of,
    reading,
    whole,
    wholes,
)
from ldm_core.errors import ConfigError
from ldm_core.support.printable import shown
from ldm_core.unet.config import UNetConfig

# Settings that change the network, with their only supported value (None: absent).
_FIXED = {
    "addition_embed_type": None,
    "center_input_sample": False,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}


def unet_config(settings: Settings) -> UNetConfig:
    """From `UNet2DConditionModel`'s settings. Raises CheckpointError for missing or unsupported ones."""
    check_fixed(UNET, settings, _FIXED)
    check_activation(UNET, settings)
    with reading(UNET):
        widths = block_widths(settings)
        types = block_kinds(settings, "down_block_types")
        attends = [level for level, kind in enumerate(types) if kind == "CrossAttnDownBlock2D"]
        _check_blocks(types, block_kinds(settings, "up_block_types"))
        heads = settings.get("num_attention_heads") or settings.get("attention_head_dim", 8)
        heads = wholes("attention_head_dim", heads if isinstance(heads, list) else [heads] * len(widths))
        disabled = settings.get("only_cross_attention") or []
        if not isinstance(disabled, list):
            raise ConfigError("only_cross_attention must be a list of one boolean for each level")
        embedding = settings.get("class_embed_type")
        one_of(UNET, "class_embed_type", embedding or "none", {"none": 0, "projection": 0})
        per_head = {width // count for width, count in zip(widths, heads, strict=True)}
        if len(set(heads)) > 1 and len(per_head) > 1:
            raise ConfigError(
                "every level must have the same number of heads, or heads of the same size, "
                f"not {shown(heads)} for widths {shown(widths)}"
            )
        return UNetConfig(
            in_channels=whole(settings, "in_channels"),
            out_channels=whole(settings, "out_channels"),
            model_channels=widths[0],
            channel_mult=tuple(multiple(width, widths[0]) for width in widths),
            num_res_blocks=one_number("layers_per_block", settings["layers_per_block"]),
            attention_resolutions=tuple(2**level for level in attends),
            num_heads=heads[0] if len(set(heads)) == 1 else None,
            num_head_channels=None if len(set(heads)) == 1 else per_head.pop(),
            transformer_depth=one_number(
                "transformer_layers_per_block", settings.get("transformer_layers_per_block", 1)
            ),
            context_dim=one_number("cross_attention_dim", settings["cross_attention_dim"]),
            use_linear_in_transformer=settings.get("use_linear_projection", False),
            disable_self_attentions=tuple(disabled) if any(disabled) else (),
            num_classes=whole(settings, "num_class_embeds") if settings.get("num_class_embeds") else None,
            adm_in_channels=whole(settings, "projection_class_embeddings_input_dim") if embedding else None,
        )


def _check_blocks(down: list[str], up: list[str]) -> None:
    mirrored = [kind.replace("Up", "Down") for kind in reversed(up)]
    if down != mirrored or not set(down) <= {"CrossAttnDownBlock2D", "DownBlock2D"}:
        raise ConfigError(f"blocks {shown(down)} and {shown(up)} are not those of a cross-attention U-Net")


def unet_settings(config: UNetConfig, sample_size: int) -> dict[str, Any]:
    """The inverse of `unet_config`. sample_size: the latent size (rows and columns) of the training."""
    widths = level_widths("U-Net", config.model_channels, config.channel_mult)
    attends = [level in config.attention_levels for level in range(len(widths))]
    result: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": config.num_heads or [config.heads(width) for width in widths],
        "block_out_channels": widths,
        "center_input_sample": False,
        "cross_attention_dim": config.context_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": config.num_res_blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": config.out_channels,
        "sample_size": sample_size,
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "use_linear_projection": config.use_linear_in_transformer,
    }
    if config.transformer_depth != 1:
        result["transformer_layers_per_block"] = config.transformer_depth
    if config.disable_self_attentions:
        result["only_cross_attention"] = list(config.disable_self_attentions)
    if config.num_classes is not None:
        result["num_class_embeds"] = config.num_classes
    if config.adm_in_channels is not None:
        result["class_embed_type"] = "projection"
        result["projection_class_embeddings_input_dim"] = config.adm_in_channels
    return result
