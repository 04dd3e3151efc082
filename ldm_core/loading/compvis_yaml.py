"""CompVis's YAML configurations (`v1-inference.yaml` and its kin), read without importing what they name.

Only the values are taken; a `target` is compared with the class names that this package knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.config import SD1, SD2_BASE, LatentDiffusionConfig
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.noise_schedule import NoiseScheduleConfig
from ldm_core.support.limits import MAX_SIZE, is_number, is_whole
from ldm_core.support.printable import printable, shown, shown_error
from ldm_core.support.regular_file import open_regular
from ldm_core.unet.config import UNetConfig

# A YAML file names its text encoder by class only.
TEXT_ENCODERS = {"FrozenCLIPEmbedder": SD1.text_encoder, "FrozenOpenCLIPEmbedder": SD2_BASE.text_encoder}
BETA_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "cosine", "sqrt": "sqrt"}
PREDICTIONS = {"eps": "eps", "v": "v", "x0": "x0"}
MAX_BYTES = 2**16  # CompVis's own are of 2 to 5 KB; the parser takes a second for a hundred


def read_yaml(path: str | Path, *, stored_scale: float | None = None) -> LatentDiffusionConfig:
    """The configuration in a YAML file. Raises CheckpointError naming the file and what is wrong in it.

    stored_scale: the latent scale that the checkpoint itself holds, if it does.
    """
    data = _parsed(Path(path))
    try:
        return from_yaml(data, stored_scale=stored_scale)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _parsed(path: Path) -> Any:
    """The plain values in a YAML file. Aliases are refused: ten lines of them make a billion values."""
    import yaml

    class PlainLoader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if getattr(self.peek_event(), "anchor", None) is not None:
                raise CheckpointError(f"{path}: anchors and aliases are not supported")
            return super().compose_node(parent, index)

    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise CheckpointError(f"{path}: more than {MAX_BYTES:,} bytes, the limit for a configuration")
        return yaml.load(data.decode("utf-8-sig"), PlainLoader)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except CheckpointError:
        raise
    # The constructors raise anything for a tag whose value does not fit, as "!!int x".
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a YAML file: {shown_error(error)}") from error


def from_yaml(data: Any, *, stored_scale: float | None = None) -> LatentDiffusionConfig:
    """The configuration in a parsed YAML document. Raises ConfigError naming what is missing or wrong."""
    try:
        return _latent_diffusion(_section(data, "model", "params"), stored_scale)
    except KeyError as error:
        raise ConfigError(f"no value for {error}") from error
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"a value has the wrong type: {shown_error(error)}") from error


def _latent_diffusion(params: Mapping[str, Any], stored_scale: float | None) -> LatentDiffusionConfig:
    unet = _unet(_section(params, "unet_config", "params"))
    autoencoder = _autoencoder(_section(params, "first_stage_config", "params"))
    text_encoder = _text_encoder(_section(params, "cond_stage_config"))
    size = params.get("image_size", 64)
    if not is_whole(size, 1, MAX_SIZE):
        raise ConfigError(f"image_size must be a whole number in 1..{MAX_SIZE}, not {shown(size)}")
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
        image_size=size * autoencoder.downsampling,
    )


def _text_encoder(stage: Mapping[str, Any]) -> TextEncoderConfig:
    named = stage.get("target")
    target = named.rpartition(".")[2] if isinstance(named, str) else ""
    if target not in TEXT_ENCODERS:
        raise ConfigError(
            f"text encoder {printable(target[:80]) or shown(named)} is not one of {', '.join(TEXT_ENCODERS)}"
        )
    layer = (stage.get("params") or {}).get("layer", "last")
    skips = {"last": 0, "penultimate": 1} if target == "FrozenOpenCLIPEmbedder" else {"last": 0}
    return replace(TEXT_ENCODERS[target], clip_skip=_lookup(skips, layer, f"{target}'s layer"))


def _latent_scale(params: Mapping[str, Any], stored: float | None) -> float:
    """With `scale_by_std` CompVis measures the scale on its first batch and keeps it in the checkpoint."""
    if not params.get("scale_by_std"):
        return _real(params, "scale_factor", 1.0)
    if stored is None:
        raise ConfigError("scale_by_std: the checkpoint should hold a scale_factor, and does not")
    return stored


def _real(params: Mapping[str, Any], name: str, default: float) -> float:
    value = params.get(name, default)
    if isinstance(value, str):  # YAML takes 1e-4, without a point, for text
        with suppress(ValueError):
            value = float(value)
    if not is_number(value):
        raise ConfigError(f"{name} must be a number, not {shown(value)}")
    return float(value)


def _section(data: Any, *names: str) -> Mapping[str, Any]:
    for depth, name in enumerate(names):
        if not isinstance(data, Mapping) or not isinstance(data.get(name), Mapping):
            raise ConfigError(f"no section {'.'.join(names[: depth + 1])}, as CompVis's configurations have")
        data = data[name]
    return data


def _lookup(table: Mapping[str, Any], value: Any, name: str) -> Any:
    if not isinstance(value, str) or value not in table:
        raise ConfigError(f"{name} must be one of {', '.join(table)}, not {shown(value)}")
    return table[value]


def _unet(params: Mapping[str, Any]) -> UNetConfig:
    if not params.get("use_spatial_transformer"):
        raise ConfigError("a U-Net without use_spatial_transformer has no text condition")
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
        # CompVis writes "not given" as -1, and a head size wins over a number of heads.
        num_heads=heads if head_channels == -1 else None,
        num_head_channels=None if head_channels == -1 else head_channels,
        transformer_depth=depth,
        context_dim=params["context_dim"],
        use_linear_in_transformer=params.get("use_linear_in_transformer", False),
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
        linear_start=_real(params, "linear_start", 1e-4),
        linear_end=_real(params, "linear_end", 2e-2),
    )
