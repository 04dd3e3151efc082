"""The configuration of a whole model. Each network's folder has its own.

Field names are those of CompVis's `v1-inference.yaml` wherever it has one.

Letters used in shapes throughout the package:

    B batch   C channels   H, W pixels   h, w latent rows and columns   N tokens or positions
    D head size   T diffusion steps of the noise schedule   n sampling steps
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from ldm_core.autoencoder.config import AutoencoderConfig, AutoencoderVQConfig
from ldm_core.bert.config import BERTConfig
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.conditioners.grounding import GroundingConfig
from ldm_core.conditioners.kinds import CONDITIONERS
from ldm_core.noise_schedule import NoiseScheduleConfig, PredictionType
from ldm_core.support.limits import (
    MAX_SCALE,
    MAX_SIZE,
    build,
    is_number,
    require,
    require_bool,
    require_whole,
)
from ldm_core.support.printable import shown
from ldm_core.unet.config import UNetConfig

# The classes that a field of a model may have, by the name that `to_dict` writes. The first needs no name.
_CLASSES: dict[str, dict[str, type[Any]]] = {
    "text_encoder": {"clip": TextEncoderConfig, "bert": BERTConfig},
    "unet": {"unet": UNetConfig},
    "autoencoder": {"kl": AutoencoderConfig, "vq": AutoencoderVQConfig},
    "noise_schedule": {"noise_schedule": NoiseScheduleConfig},
    "conditioner": CONDITIONERS,
}
_OPTIONAL = ("text_encoder", "conditioner")
KIND = "kind"


@dataclass(frozen=True)
class LatentDiffusionConfig:
    """A whole model: its networks, its noise schedule, and how they are combined."""

    # None: the model reads no text.
    text_encoder: TextEncoderConfig | BERTConfig | None = field(default_factory=TextEncoderConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    noise_schedule: NoiseScheduleConfig = field(default_factory=NoiseScheduleConfig)
    latent_scale: float = (
        0.18215  # CompVis's scale_factor: U-Net latents = latent_scale * autoencoder latents
    )
    prediction: PredictionType = "eps"
    image_size: int = 512  # training resolution in pixels
    conditioner: Any = None  # of inputs other than prompts: one of `ldm_core.conditioners.CONDITIONERS`
    use_ema: bool = False  # whether the original scripts sample with the averaged weights

    def __post_init__(self) -> None:
        for name, kinds in _CLASSES.items():
            value = getattr(self, name)
            if name in _OPTIONAL and value is None:
                continue
            classes = " or ".join(f"a {kind.__name__}" for kind in kinds.values())
            require(type(value) in kinds.values(), f"{name} must be {classes}, not {shown(value)}")
        require_bool("model", self, "use_ema")
        require(
            isinstance(self.prediction, str) and self.prediction in get_args(PredictionType),
            f"prediction must be 'eps', 'v' or 'x0', not {shown(self.prediction)}",
        )
        require(
            is_number(self.latent_scale) and 0 < self.latent_scale <= MAX_SCALE,
            f"latent_scale must be a positive number up to {MAX_SCALE:g}, not {shown(self.latent_scale)}",
        )
        require_whole("model", self, "image_size", 1, MAX_SIZE)
        width = self.unet.context_dim
        if self.text_encoder is not None:
            require(
                width == self.text_encoder.width,
                f"the unet expects context vectors of size {width} (context_dim), "
                f"but the text encoder outputs vectors of size {self.text_encoder.width} (width)",
            )
        given = getattr(self.conditioner, "context_dim", width)
        require(
            given == width,
            f"the unet expects context vectors of size {width} (context_dim), but the conditioner outputs "
            f"vectors of size {given}",
        )
        require(
            self.unet.gated_self_attention or not isinstance(self.conditioner, GroundingConfig),
            "the unet has no gated self-attention to which the conditioner could give objects",
        )
        concat = self.unet.in_channels - self.unet.out_channels
        size = self.unet.adm_in_channels
        given = getattr(self.conditioner, "vector_dim", size)
        require(
            given == size,
            f"the unet expects vectors of size {size} (adm_in_channels), but the conditioner outputs vectors "
            f"of size {given}",
        )
        given = getattr(self.conditioner, "concat_channels", concat)
        require(
            given == concat,
            f"the unet expects {concat} channels besides the latents, but the conditioner outputs {given}",
        )
        require(
            self.unet.out_channels == self.autoencoder.embed_dim,
            f"the unet outputs {self.unet.out_channels} channels (out_channels), "
            f"but the autoencoder's latents have {self.autoencoder.embed_dim} (embed_dim)",
        )

    @property
    def size_multiple(self) -> int:
        """Height and width in pixels must be multiples of this."""
        return self.autoencoder.downsampling * self.unet.downsampling

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for JSON.

        A part whose class is not the usual one of its field has an entry "kind". `conditioner` and `use_ema`
        are left out where they have their defaults.
        """
        data = asdict(self)
        for field_name, kinds in _CLASSES.items():
            kind = next((k for k, one in kinds.items() if one is type(getattr(self, field_name))), None)
            if kind is not None and (kind != next(iter(kinds)) or field_name == "conditioner"):
                data[field_name] = {KIND: kind, **data[field_name]}
        for field_name, default in (("conditioner", None), ("use_ema", False)):
            if data[field_name] == default:
                del data[field_name]
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LatentDiffusionConfig:
        """The inverse of `to_dict`. Raises ConfigError for invalid values, naming unknown fields."""
        require(isinstance(data, dict), f"expected a mapping, not {shown(data)}")
        values = {
            key: _built(key, value) if key in _CLASSES and value is not None else value
            for key, value in data.items()
        }
        return build(cls, values)


def _built(name: str, data: Any) -> Any:
    """The configuration of a part, of the class that its "kind" names."""
    kinds = _CLASSES[name]
    require(isinstance(data, dict), f"{name}: expected a mapping, not {shown(data)}")
    values = dict(data)
    kind = values.pop(KIND, next(iter(kinds), None))
    known = isinstance(kind, str) and kind in kinds
    require(known, f"{name}: {KIND} must be one of {', '.join(kinds)}, not {shown(kind)}")
    if "noise_schedule" in values:  # of a conditioner that adds noise
        values["noise_schedule"] = build(NoiseScheduleConfig, values["noise_schedule"])
    return build(kinds[kind], values)
