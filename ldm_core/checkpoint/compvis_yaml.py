"""CompVis's YAML configurations (`v1-inference.yaml` and its kin), read without importing what they name.

Only the values are taken; a `target` is compared with the class names that this package knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.config import (
    SD1,
    SD2_BASE,
    AutoencoderConfig,
    ConfigError,
    LatentDiffusionConfig,
    NoiseScheduleConfig,
    TextEncoderConfig,
    UNetConfig,
)

# A YAML file names its text encoder by class only.
TEXT_ENCODERS = {"FrozenCLIPEmbedder": SD1.text_encoder, "FrozenOpenCLIPEmbedder": SD2_BASE.text_encoder}
BETA_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "cosine", "sqrt": "sqrt"}
PREDICTIONS = {"eps": "eps", "v": "v", "x0": "x0"}


def read_yaml(path: str | Path, *, stored_scale: float | None = None) -> LatentDiffusionConfig:
    """The configuration in a YAML file. Raises CheckpointError naming the file and what is wrong in it.

    stored_scale: the latent scale that the checkpoint itself holds, if it does.
    """
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a YAML file: {str(error).splitlines()[0]}") from error
    try:
        return from_yaml(data, stored_scale=stored_scale)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def from_yaml(data: Any, *, stored_scale: float | None = None) -> LatentDiffusionConfig:
    """The configuration in a parsed YAML document. Raises ConfigError naming what is missing or wrong."""
    try:
        return _latent_diffusion(_section(data, "model", "params"), stored_scale)
    except KeyError as error:
        raise ConfigError(f"no value for {error}") from error
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"a value has the wrong type: {error}") from error


def _latent_diffusion(params: Mapping[str, Any], stored_scale: float | None) -> LatentDiffusionConfig:
    unet = _unet(_section(params, "unet_config", "params"))
    autoencoder = _autoencoder(_section(params, "first_stage_config", "params"))
    text_encoder = _text_encoder(_section(params, "cond_stage_config"))
    if unet.context_dim != text_encoder.width:
        # Another size than the class's default: its width is the context's, the rest is in the tensors.
        text_encoder = replace(text_encoder, width=unet.context_dim, heads=1)
    return LatentDiffusionConfig(
        text_encoder=text_encoder,
        unet=unet,
        autoencoder=autoencoder,
        noise_schedule=_noise_schedule(params),
        latent_scale=_latent_scale(params, stored_scale),
        prediction=_lookup(PREDICTIONS, params.get("parameterization", "eps"), "parameterization"),
        image_size=int(params.get("image_size", 64)) * autoencoder.downsampling,
    )


def _text_encoder(stage: Mapping[str, Any]) -> TextEncoderConfig:
    target = str(stage.get("target")).rpartition(".")[2]
    if target not in TEXT_ENCODERS:
        raise ConfigError(f"text encoder {target} is not one of {', '.join(TEXT_ENCODERS)}")
    layer = (stage.get("params") or {}).get("layer", "last")
    skips = {"last": 0, "penultimate": 1} if target == "FrozenOpenCLIPEmbedder" else {"last": 0}
    return replace(TEXT_ENCODERS[target], clip_skip=_lookup(skips, layer, f"{target}'s layer"))


def _latent_scale(params: Mapping[str, Any], stored: float | None) -> float:
    """With `scale_by_std` CompVis measures the scale on its first batch and keeps it in the checkpoint."""
    if not params.get("scale_by_std"):
        return float(params.get("scale_factor", 1.0))
    if stored is None:
        raise ConfigError("scale_by_std: the checkpoint should hold a scale_factor, and does not")
    return stored


def _section(data: Any, *names: str) -> Mapping[str, Any]:
    for depth, name in enumerate(names):
        if not isinstance(data, Mapping) or not isinstance(data.get(name), Mapping):
            raise ConfigError(f"no section {'.'.join(names[: depth + 1])}, as CompVis's configurations have")
        data = data[name]
    return data


def _lookup(table: Mapping[str, Any], value: Any, name: str) -> Any:
    if value not in table:
        raise ConfigError(f"{name} must be one of {', '.join(table)}, not {value!r}")
    return table[value]


def _unet(params: Mapping[str, Any]) -> UNetConfig:
    if not params.get("use_spatial_transformer"):
        raise ConfigError("a U-Net without use_spatial_transformer has no text condition")
    heads, head_channels = params.get("num_heads", -1), params.get("num_head_channels", -1)
    num_classes = params.get("num_classes")
    depth = params.get("transformer_depth", 1)
    if not isinstance(depth, int) or not isinstance(params.get("num_res_blocks"), int):
        raise ConfigError("transformer_depth and num_res_blocks must be one number for all levels")
    return UNetConfig(
        in_channels=params["in_channels"],
        out_channels=params["out_channels"],
        model_channels=params["model_channels"],
        channel_mult=tuple(params.get("channel_mult", (1, 2, 4, 8))),
        num_res_blocks=params["num_res_blocks"],
        attention_resolutions=tuple(params["attention_resolutions"]),
        # CompVis writes "not given" as -1, and a head size wins over a number of heads.
        num_heads=heads if head_channels == -1 else None,
        num_head_channels=None if head_channels == -1 else head_channels,
        transformer_depth=depth,
        context_dim=params["context_dim"],
        use_linear_in_transformer=bool(params.get("use_linear_in_transformer", False)),
        disable_self_attentions=tuple(params.get("disable_self_attentions") or ()),
        num_classes=num_classes if isinstance(num_classes, int) else None,
        adm_in_channels=params.get("adm_in_channels") if num_classes == "sequential" else None,
    )


def _autoencoder(params: Mapping[str, Any]) -> AutoencoderConfig:
    dd = _section(params, "ddconfig")
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


def _noise_schedule(params: Mapping[str, Any]) -> NoiseScheduleConfig:
    return NoiseScheduleConfig(
        timesteps=params.get("timesteps", 1000),
        beta_schedule=_lookup(BETA_SCHEDULES, params.get("beta_schedule", "linear"), "beta_schedule"),
        linear_start=float(params.get("linear_start", 1e-4)),
        linear_end=float(params.get("linear_end", 2e-2)),
    )
