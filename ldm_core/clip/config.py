"""The configuration of a whole CLIP, and the published ones (Radford et al. 2021, table 20).

OpenAI's models go by OpenAI's own names. open_clip trained networks of the same sizes with the exact gelu;
the tensors of the two have the same names and shapes, and weights of one kind in the other give plausible
nonsense. So theirs have the prefix `open_clip/`. (Those that open_clip calls `-quickgelu` have OpenAI's
activation, and some were trained on pixels of another mean: their `open_clip_config.json` says so.)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from ldm_core.config import ConfigError, ImageEncoderConfig, TextEncoderConfig, build
from ldm_core.printable import shown


@dataclass(frozen=True)
class CLIPConfig:
    """An image encoder and a text encoder that project to one space."""

    image_encoder: ImageEncoderConfig
    text_encoder: TextEncoderConfig

    def __post_init__(self) -> None:
        image, text = self.image_encoder, self.text_encoder
        if image.projection_dim != text.projection_dim:
            raise ConfigError(
                f"images are projected to {image.projection_dim} dimensions (projection_dim of the image "
                f"encoder), texts to {text.projection_dim}"
            )
        if text.clip_skip:
            raise ConfigError(f"CLIP takes the last text block's output, clip_skip=0, not {text.clip_skip}")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CLIPConfig:
        """The inverse of `to_dict`. Raises ConfigError for any other value."""
        try:
            if not isinstance(data, dict) or set(data) != {"image_encoder", "text_encoder"}:
                raise ConfigError(f"expected a mapping of image_encoder and text_encoder, not {shown(data)}")
            image = build(ImageEncoderConfig, data["image_encoder"])
            return cls(image, build(TextEncoderConfig, data["text_encoder"]))
        except ConfigError as error:
            raise ConfigError(f"not a CLIP configuration: {error}") from error


def _with_exact_gelu(config: CLIPConfig) -> CLIPConfig:
    return CLIPConfig(
        replace(config.image_encoder, activation="gelu"),
        replace(config.text_encoder, activation="gelu", pad_token_id=0),
    )


VIT_B_32 = CLIPConfig(ImageEncoderConfig(), TextEncoderConfig(width=512, heads=8, projection_dim=512))
VIT_B_16 = replace(VIT_B_32, image_encoder=replace(VIT_B_32.image_encoder, patch_size=16))
VIT_L_14 = CLIPConfig(
    ImageEncoderConfig(patch_size=14, width=1024, layers=24, heads=16, projection_dim=768),
    TextEncoderConfig(width=768, heads=12, projection_dim=768),
)
VIT_L_14_336 = replace(VIT_L_14, image_encoder=replace(VIT_L_14.image_encoder, image_size=336))
VIT_H_14 = _with_exact_gelu(
    CLIPConfig(
        ImageEncoderConfig(patch_size=14, width=1280, layers=32, heads=16, projection_dim=1024),
        TextEncoderConfig(width=1024, layers=24, heads=16, projection_dim=1024),
    )
)

PRESETS: dict[str, CLIPConfig] = {
    "ViT-B/32": VIT_B_32,
    "ViT-B/16": VIT_B_16,
    "ViT-L/14": VIT_L_14,
    "ViT-L/14@336px": VIT_L_14_336,
    "open_clip/ViT-B-32": _with_exact_gelu(VIT_B_32),
    "open_clip/ViT-B-16": _with_exact_gelu(VIT_B_16),
    "open_clip/ViT-L-14": _with_exact_gelu(VIT_L_14),
    "open_clip/ViT-H-14": VIT_H_14,
}


def preset(name: str) -> CLIPConfig:
    """The preset of this name. Raises ConfigError with the known names."""
    if name not in PRESETS:
        raise ConfigError(f"unknown CLIP configuration {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
