"""CompVis's YAML configurations (such as `v1-inference.yaml`), read without importing the classes they name.

Only the values are used; each `target` is compared with a list of known class names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from ldm_core.checkpoint.yaml_values import class_name, flag, lookup, real, section
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.loading.parts import Section, model_slots, part_words, parts
from ldm_core.noise_schedule import NoiseScheduleConfig
from ldm_core.support.limits import MAX_SIZE, is_whole
from ldm_core.support.printable import printable, shown, shown_error
from ldm_core.support.regular_file import open_regular

BETA_SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "cosine", "sqrt": "sqrt"}
PREDICTIONS = {"eps": "eps", "v": "v", "x0": "x0"}
MAX_BYTES = 2**16  # CompVis's own have 2 to 5 KB; parsing 100 KB takes about a second


def read_yaml(path: str | Path, *, stored_scale: float | None = None) -> LatentDiffusionConfig:
    """The configuration in a YAML file. Raises CheckpointError that names the file and the invalid value.

    stored_scale: the latent scale stored in the checkpoint, if any.
    """
    data = _parsed(Path(path))
    try:
        return from_yaml(data, stored_scale=stored_scale)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _parsed(path: Path) -> Any:
    """The plain values in a YAML file. Aliases are rejected: ten lines can expand to a billion values."""
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
    # The constructors raise various errors for a tag with an invalid value, such as "!!int x".
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a YAML file: {shown_error(error)}") from error


def from_yaml(data: Any, *, stored_scale: float | None = None) -> LatentDiffusionConfig:
    """The configuration in a parsed YAML document. Raises ConfigError naming a missing or invalid value."""
    try:
        return _latent_diffusion(section(data, "model"), stored_scale)
    except KeyError as error:
        raise ConfigError(f"no value for {error}") from error
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"a value has the wrong type: {shown_error(error)}") from error


def _latent_diffusion(model: Mapping[str, Any], stored_scale: float | None) -> LatentDiffusionConfig:
    params = section(model, "params")
    slots = {slot: _part(slot, model) for slot in model_slots()}
    _require_conditioning(params, slots)
    config = LatentDiffusionConfig(
        **slots,
        noise_schedule=_noise_schedule(params),
        latent_scale=_latent_scale(params, stored_scale),
        prediction=lookup(PREDICTIONS, params.get("parameterization", "eps"), "parameterization"),
        use_ema=flag(params, "use_ema", default=True),
    )
    _require_fields(params, config)
    size = params.get("image_size", 64)
    if not is_whole(size, 1, MAX_SIZE):
        raise ConfigError(f"image_size must be a whole number in 1..{MAX_SIZE}, not {shown(size)}")
    return replace(config, image_size=size * config.autoencoder.downsampling)


# Slots that a model may lack: both read the section of the condition.
OPTIONAL = ("text_encoder", "conditioner")
UNCONDITIONAL = "__is_unconditional__"


def _part(slot: str, model: Mapping[str, Any]) -> Any:
    """The configuration of the part that fills a slot, or None; its YAML section names the class."""
    params = section(model, "params")
    for one in _sections(slot):
        named = {class_name(params.get(one.name)), class_name(model)}
        if not one.targets or named & set(one.targets):
            found = one.read(params)
            if found is not None:
                return found
    return None if slot in OPTIONAL else _unknown(params, slot)


def _sections(*slots: str) -> list[Section]:
    return [part.section for part in parts() if part.fills in slots and part.section is not None]


def _unknown(params: Mapping[str, Any], *slots: str) -> NoReturn:
    """Raise ConfigError that names the class of a section, and the known ones."""
    sections = _sections(*slots)
    stage = params.get(sections[0].name)
    known = ", ".join(dict.fromkeys(target for one in sections for target in one.targets))
    named = printable(class_name(stage)[:80]) or shown(stage)
    raise ConfigError(f"{part_words(slots[0])} {named} is not one of {known}")


def _require_conditioning(params: Mapping[str, Any], slots: Mapping[str, Any]) -> None:
    """Raise ConfigError for a condition of an unknown class."""
    none = class_name(params.get("cond_stage_config")) == UNCONDITIONAL
    if not none and all(slots.get(slot) is None for slot in OPTIONAL):
        _unknown(params, *OPTIONAL)


# The fields of the Condition by `conditioning_key`, as `DiffusionWrapper` hands them on.
FIELDS = {
    "concat": {"concat"},
    "crossattn": {"context"},
    "hybrid": {"concat", "context"},
    "adm": {"vector"},
    "crossattn-adm": {"context", "vector"},
    "hybrid-adm": {"concat", "context", "vector"},
}


def _require_fields(params: Mapping[str, Any], config: LatentDiffusionConfig) -> None:
    """Raise ConfigError if the U-Net's inputs are not those of `conditioning_key`."""
    if "conditioning_key" not in params and "concat_mode" not in params:
        return
    unconditional = config.text_encoder is None and config.conditioner is None
    default = "concat" if flag(params, "concat_mode", default=True) else "crossattn"
    key = params.get("conditioning_key") or default
    told: set[str] = set() if unconditional else lookup(FIELDS, key, "conditioning_key")
    unet = config.unet
    takes = {
        "context": unet.context_dim is not None,
        "concat": unet.in_channels > unet.out_channels,
        "vector": unet.num_classes is not None or unet.adm_in_channels is not None,
    }
    if told != {name for name, taken in takes.items() if taken}:
        of = ", ".join(name for name, taken in takes.items() if taken) or "none"
        raise ConfigError(
            f"the conditioning_key {'of an unconditional model' if unconditional else key} needs a U-Net "
            f"with the conditions {', '.join(sorted(told)) or 'none'}, but unet_config's has {of}"
        )


def _latent_scale(params: Mapping[str, Any], stored: float | None) -> float:
    """With `scale_by_std`, CompVis measures the scale on the first batch and stores it in the checkpoint."""
    if not params.get("scale_by_std"):
        return real(params, "scale_factor", 1.0)
    if stored is None:
        raise ConfigError("scale_by_std requires a scale_factor in the checkpoint, which has none")
    return stored


def _noise_schedule(params: Mapping[str, Any]) -> NoiseScheduleConfig:
    return NoiseScheduleConfig(
        timesteps=params.get("timesteps", 1000),
        beta_schedule=lookup(BETA_SCHEDULES, params.get("beta_schedule", "linear"), "beta_schedule"),
        linear_start=real(params, "linear_start", 1e-4),
        linear_end=real(params, "linear_end", 2e-2),
    )
