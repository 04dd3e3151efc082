"""Convert diffusers' `config.json` of a U-Net to a configuration, and back.

`UNet2DConditionModel` has cross-attention, `UNet2DModel` has self-attention blocks. Unsupported values of the
settings below raise an error that names the setting, and so does a missing setting without a default in
diffusers. Note that `attention_head_dim` is the number of heads in the first class, and the size of a head in
the second.
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

UNCONDITIONAL = "UNet2DModel"

# Settings of both classes that change the network, with their only supported value (None: absent).
_FIXED = {
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "time_embedding_type": "positional",
}
_FIXED_CONDITIONAL = {
    "addition_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
}
_FIXED_UNCONDITIONAL = {"add_attention": True, "class_embed_type": None, "mid_block_type": "UNetMidBlock2D"}
_NORMS = {"default": False, "scale_shift": True}  # resnet_time_scale_shift
_RESAMPLING = {"conv": False, "resnet": True}  # downsample_type and upsample_type of blocks with attention


def unet_config(settings: Settings) -> UNetConfig:
    """From the settings of one of the two classes. Raises CheckpointError for missing or unsupported ones."""
    unconditional = settings.get("_class_name") == UNCONDITIONAL
    check_fixed(UNET, settings, _FIXED)
    check_fixed(UNET, settings, _FIXED_UNCONDITIONAL if unconditional else _FIXED_CONDITIONAL)
    check_activation(UNET, settings)
    with reading(UNET):
        widths = block_widths(settings)
        own = _unconditional(settings, widths) if unconditional else _conditional(settings, widths)
        norm = settings.get("resnet_time_scale_shift", "default")
        return UNetConfig(
            in_channels=whole(settings, "in_channels"),
            out_channels=whole(settings, "out_channels"),
            model_channels=widths[0],
            channel_mult=tuple(multiple(width, widths[0]) for width in widths),
            num_res_blocks=one_number("layers_per_block", settings["layers_per_block"]),
            num_classes=whole(settings, "num_class_embeds") if settings.get("num_class_embeds") else None,
            use_scale_shift_norm=one_of(UNET, "resnet_time_scale_shift", norm, _NORMS),
            **own,
        )


def _conditional(settings: Settings, widths: list[int]) -> dict[str, Any]:
    """The fields that `UNet2DConditionModel` sets in its own way."""
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
    depth = settings.get("transformer_layers_per_block", 1)
    attention = settings.get("attention_type", "default")
    return {
        "gated_self_attention": one_of(UNET, "attention_type", attention, {"default": False, "gated": True}),
        "attention_resolutions": tuple(2**level for level in attends),
        "num_heads": heads[0] if len(set(heads)) == 1 else None,
        "num_head_channels": None if len(set(heads)) == 1 else per_head.pop(),
        "transformer_depth": one_number("transformer_layers_per_block", depth),
        "context_dim": one_number("cross_attention_dim", settings["cross_attention_dim"]),
        "use_linear_in_transformer": settings.get("use_linear_projection", False),
        "disable_self_attentions": tuple(disabled) if any(disabled) else (),
        "adm_in_channels": whole(settings, "projection_class_embeddings_input_dim") if embedding else None,
    }


def _check_blocks(down: list[str], up: list[str]) -> None:
    mirrored = [kind.replace("Up", "Down") for kind in reversed(up)]
    if down != mirrored or not set(down) <= {"CrossAttnDownBlock2D", "DownBlock2D"}:
        raise ConfigError(f"blocks {shown(down)} and {shown(up)} are not those of a cross-attention U-Net")


def _unconditional(settings: Settings, widths: list[int]) -> dict[str, Any]:
    """The fields that `UNet2DModel` sets in its own way."""
    down, up = block_kinds(settings, "down_block_types"), block_kinds(settings, "up_block_types")
    mirrored = [kind.replace("Up", "Down") for kind in reversed(up)]  # the way up, in the order of `down`
    attends = [kind == "AttnDownBlock2D" for kind in down]
    known = {"AttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D"}
    same = attends == [kind == "AttnDownBlock2D" for kind in mirrored]
    if len(down) != len(widths) or not same or not {*down, *mirrored} <= known:
        raise ConfigError(f"blocks {shown(down)} and {shown(up)} are not those of a U-Net without context")
    # The coarsest level has no downsampling and the finest no upsampling, whatever their blocks are called.
    resnet = {_resamples(settings, "downsample_type", kind) for kind in down[:-1]}
    resnet |= {_resamples(settings, "upsample_type", kind) for kind in mirrored[1:]}
    if len(resnet) > 1:
        raise ConfigError("residual blocks resample at some levels and convolutions at others")
    groups = settings.get("attn_norm_num_groups")
    # Without a number, the middle block's attention has no norm if residual blocks scale and shift.
    if groups != 32 and (groups is not None or settings.get("resnet_time_scale_shift") == "scale_shift"):
        raise ConfigError(f"attn_norm_num_groups is {shown(groups)}; only 32 is supported")
    size = settings.get("attention_head_dim", 8)
    return {
        "attention_resolutions": tuple(2**level for level, attention in enumerate(attends) if attention),
        "num_heads": 1 if size is None else None,
        "num_head_channels": size,
        "context_dim": None,
        "resblock_updown": resnet == {True},
    }


def _resamples(settings: Settings, name: str, kind: str) -> bool:
    """Whether a residual block resamples after this kind of block (in the names of the way down)."""
    if kind != "AttnDownBlock2D":
        return kind == "ResnetDownsampleBlock2D"
    resnet: bool = one_of(UNET, name, settings.get(name) or "conv", _RESAMPLING)
    return resnet


def unet_settings(config: UNetConfig, sample_size: int) -> dict[str, Any]:
    """The inverse of `unet_config`. sample_size: the latent size (rows and columns) of the training.

    Raises ConfigError for a network that neither class can be.
    """
    widths = level_widths("U-Net", config.model_channels, config.channel_mult)
    result: dict[str, Any] = {
        "act_fn": "silu",
        "block_out_channels": widths,
        "center_input_sample": False,
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
    }
    if config.num_classes is not None:
        result["num_class_embeds"] = config.num_classes
    if config.use_scale_shift_norm:
        result["resnet_time_scale_shift"] = "scale_shift"
    write = _conditional_settings if config.context_dim is not None else _unconditional_settings
    return dict(sorted((result | write(config, widths)).items()))


def _conditional_settings(config: UNetConfig, widths: list[int]) -> dict[str, Any]:
    if config.resblock_updown:
        raise ConfigError("UNet2DConditionModel has no residual blocks that resample beside cross-attention")
    attends = [level in config.attention_levels for level in range(len(widths))]
    result: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": config.num_heads or [config.heads(width) for width in widths],
        "cross_attention_dim": config.context_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "use_linear_projection": config.use_linear_in_transformer,
    }
    if config.transformer_depth != 1:
        result["transformer_layers_per_block"] = config.transformer_depth
    if config.disable_self_attentions:
        result["only_cross_attention"] = list(config.disable_self_attentions)
    if config.gated_self_attention:
        result["attention_type"] = "gated"
    if config.adm_in_channels is not None:
        result["class_embed_type"] = "projection"
        result["projection_class_embeddings_input_dim"] = config.adm_in_channels
    return result


def _unconditional_settings(config: UNetConfig, widths: list[int]) -> dict[str, Any]:
    if config.adm_in_channels is not None:
        raise ConfigError(f"{UNCONDITIONAL} takes class labels, and no vectors (adm_in_channels)")
    resnet, levels, last = config.resblock_updown, range(len(widths)), len(widths) - 1
    plain = {
        "Down": ["ResnetDownsampleBlock2D" if resnet and level < last else "DownBlock2D" for level in levels],
        "Up": ["ResnetUpsampleBlock2D" if resnet and level > 0 else "UpBlock2D" for level in levels],
    }
    down, up = (
        [f"Attn{way}Block2D" if level in config.attention_levels else kinds[level] for level in levels]
        for way, kinds in plain.items()
    )
    return {
        "_class_name": UNCONDITIONAL,
        "attention_head_dim": _head_size(config, widths),
        "attn_norm_num_groups": 32,
        "down_block_types": down,
        "downsample_type": "resnet" if resnet else "conv",
        "up_block_types": up[::-1],
        "upsample_type": "resnet" if resnet else "conv",
    }


def _head_size(config: UNetConfig, widths: list[int]) -> int | None:
    """The size of a head at all levels; None: each level has one head."""
    if config.num_heads == 1:
        return None
    sizes = {widths[level] // config.heads(widths[level]) for level in (*config.attention_levels, -1)}
    if len(sizes) > 1:
        raise ConfigError(
            f"{UNCONDITIONAL} has heads of one size at all levels, and this one has {config.num_heads} heads "
            f"of the sizes {shown(sorted(sizes))}"
        )
    return sizes.pop()
