"""The autoencoder's section in CompVis's YAML configurations, `first_stage_config`."""

from __future__ import annotations

from typing import Any

from ldm_core.autoencoder.config import AutoencoderConfig, AutoencoderVQConfig
from ldm_core.checkpoint.yaml_values import Params, lookup, section
from ldm_core.errors import ConfigError
from ldm_core.support.printable import shown

KL = ("AutoencoderKL",)
VQ = ("VQModelInterface", "VQModel")

# Whether the network has attention. "none" removes it from the levels of attn_resolutions, too.
_ATTENTION = {"vanilla": True, "vanilla-xformers": True, "none": False}
# Settings of `ddconfig` that change the network, with their only supported value.
_FIXED = {"give_pre_end": False, "resamp_with_conv": True, "tanh_out": False, "use_linear_attn": False}


def autoencoder_in_yaml(model: Params) -> AutoencoderConfig:
    """`AutoencoderKL`."""
    dd = section(model, "first_stage_config", "params", "ddconfig")
    if not dd.get("double_z", True):
        raise ConfigError("an autoencoder without double_z is not a KL autoencoder")
    if not _has_attention(dd):
        raise ConfigError("attn_type 'none' is supported for autoencoders with vector quantisation only")
    return AutoencoderConfig(**_sizes(model))


def vq_in_yaml(model: Params) -> AutoencoderVQConfig:
    """`VQModel` and `VQModelInterface`. `sane_index_shape` changes only the shape of returned indices."""
    params = section(model, "first_stage_config", "params")
    dd = section(params, "ddconfig")
    if dd.get("double_z", True):
        raise ConfigError("an autoencoder with vector quantisation has double_z false")
    if params.get("remap") is not None:
        raise ConfigError(f"remap is {shown(params['remap'])}; only codebooks without remap are supported")
    attention = _has_attention(dd)
    sizes = _sizes(model)
    if not attention:
        sizes["attn_resolutions"] = ()
    return AutoencoderVQConfig(**sizes, n_embed=params["n_embed"], middle_attention=attention)


def _has_attention(dd: Params) -> bool:
    return bool(lookup(_ATTENTION, dd.get("attn_type", "vanilla"), "attn_type"))


def _sizes(model: Params) -> dict[str, Any]:
    """The fields that both autoencoders have."""
    params = section(model, "first_stage_config", "params")
    dd = section(params, "ddconfig")
    for name, value in _FIXED.items():
        if dd.get(name, value) != value:
            raise ConfigError(f"ddconfig: {name} is {shown(dd[name])}; only {value} is supported")
    return {
        "embed_dim": params["embed_dim"],
        "z_channels": dd["z_channels"],
        "resolution": dd["resolution"],
        "in_channels": dd["in_channels"],
        "out_ch": dd["out_ch"],
        "ch": dd["ch"],
        "ch_mult": tuple(dd["ch_mult"]),
        "num_res_blocks": dd["num_res_blocks"],
        "attn_resolutions": tuple(dd["attn_resolutions"]),
    }
