"""The U-Net's section in CompVis's YAML configurations, `unet_config` with the class `UNetModel`.

Every option that this class has is read, has no effect on the output, or must have the value given here. An
error names any other option, since it could change the network.
"""

from __future__ import annotations

from ldm_core.checkpoint.yaml_values import Params, section
from ldm_core.errors import ConfigError
from ldm_core.support.printable import shown
from ldm_core.unet.config import UNetConfig

READ = {
    *("in_channels", "out_channels", "model_channels", "channel_mult", "num_res_blocks"),
    *("attention_resolutions", "num_heads", "num_head_channels", "num_heads_upsample"),
    *("use_spatial_transformer", "transformer_depth", "context_dim", "use_linear_in_transformer"),
    *("disable_self_attentions", "num_classes", "adm_in_channels"),
    *("use_scale_shift_norm", "resblock_updown"),
}
# Without effect on the output: sizes that are not used, memory, dtypes, and what acts in training only.
# `legacy` chooses how a head's size follows from the number of heads; where they divide widths, both agree.
WITHOUT_EFFECT = {"image_size", "use_checkpoint", "use_fp16", "use_bf16", "dropout", "legacy"}
# Options that change the network, with their only supported value, which is also the default.
FIXED = {
    "conv_resample": True,  # resampling with a convolution
    "dims": 2,
    "disable_middle_self_attn": False,
    "n_embed": None,  # predicts codes of a VQ autoencoder
    "num_attention_blocks": None,  # of each level
    "use_new_attention_order": False,  # of queries, keys and values within one tensor
}


def unet_in_yaml(model: Params) -> UNetConfig:
    """`UNetModel`. Raises ConfigError that names an option which is missing, unknown or not supported."""
    params = section(model, "unet_config", "params")
    _check_options(params)
    heads, head_channels = params.get("num_heads", -1), params.get("num_head_channels", -1)
    num_classes = params.get("num_classes")
    transformer = params.get("use_spatial_transformer", False)
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
        transformer_depth=params.get("transformer_depth", 1) if transformer else 1,
        context_dim=params["context_dim"] if transformer else None,
        use_linear_in_transformer=params.get("use_linear_in_transformer", False) if transformer else False,
        disable_self_attentions=tuple(params.get("disable_self_attentions") or ()) if transformer else (),
        num_classes=None if num_classes == "sequential" else num_classes,
        adm_in_channels=params["adm_in_channels"] if num_classes == "sequential" else None,
        use_scale_shift_norm=params.get("use_scale_shift_norm", False),
        resblock_updown=params.get("resblock_updown", False),
    )


def _check_options(params: Params) -> None:
    """Raise ConfigError for options that would make another network."""
    unknown = params.keys() - READ - WITHOUT_EFFECT - FIXED.keys()
    if unknown:
        raise ConfigError(f"unet_config has the unknown option {shown(min(map(str, unknown)))}")
    for name, value in FIXED.items():
        if params.get(name, value) != value:
            raise ConfigError(f"unet_config: {name} is {shown(params[name])}; only {value!r} is supported")
    for name in ("transformer_depth", "num_res_blocks"):
        if isinstance(params.get(name), list):
            raise ConfigError("transformer_depth and num_res_blocks must be one number for all levels")
    transformer = params.get("use_spatial_transformer", False)
    if not isinstance(transformer, bool):
        raise ConfigError(f"use_spatial_transformer must be true or false, not {shown(transformer)}")
    if transformer and params.get("context_dim") is None:
        raise ConfigError("use_spatial_transformer requires context_dim")
    if not transformer and params.get("context_dim") is not None:
        raise ConfigError("context_dim requires use_spatial_transformer: true")
    classes = params.get("num_classes")
    if isinstance(classes, str) and classes != "sequential":
        raise ConfigError(f"num_classes must be a number or 'sequential', not {shown(classes)}")
    upsampling = params.get("num_heads_upsample", -1)
    if upsampling not in (-1, params.get("num_heads", -1)):
        raise ConfigError(f"num_heads_upsample must be num_heads, not {shown(upsampling)}")
