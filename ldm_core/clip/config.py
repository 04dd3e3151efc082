"""Configurations of CLIP's encoders, and presets of the published models (Radford et al. 2021, table 20).

OpenAI's models have OpenAI's names. open_clip's models of the same sizes use the exact gelu, and their
presets have the prefix `open_clip/`. The tensors of both have the same names and shapes, and the wrong
activation gives plausible but wrong embeddings. (open_clip's `-quickgelu` models use OpenAI's activation, and
some use another mean of the pixels; see their `open_clip_config.json`.)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from ldm_core.errors import ConfigError
from ldm_core.support.limits import (
    MAX_DEPTH,
    MAX_ROWS,
    MAX_SIZE,
    build,
    is_number,
    make_tuples,
    require,
    require_heads,
    require_whole,
)
from ldm_core.support.printable import shown

Activation = Literal["quick_gelu", "gelu"]


def _require_activation(part: str, activation: Any) -> None:
    require(
        isinstance(activation, str) and activation in get_args(Activation),
        f"{part}: activation must be 'quick_gelu' or 'gelu', not {shown(activation)}",
    )


@dataclass(frozen=True)
class TextEncoderConfig:
    """CLIP's text transformer (Radford et al. 2021, arXiv:2103.00020, section 2.4)."""

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: Activation = "quick_gelu"  # OpenAI's CLIP; open_clip's models use the exact gelu
    clip_skip: int = 0  # final blocks to skip; SD2 uses the penultimate layer, 1
    pad_token_id: int = 49407  # OpenAI's tokenizer pads with the end-of-text token, open_clip with 0
    projection_dim: int | None = (
        None  # of the projection to CLIP's joint space, which open_clip's files contain
    )

    def __post_init__(self) -> None:
        part = "text encoder"
        require_whole(part, self, "vocab_size", 1, MAX_ROWS)
        require_whole(part, self, "context_length width heads", 1, MAX_SIZE)
        require_whole(part, self, "layers", 1, MAX_DEPTH)
        require_heads(part, self.width, self.heads)
        _require_activation(part, self.activation)
        require_whole(part, self, "clip_skip", 0, self.layers - 1)
        require_whole(part, self, "pad_token_id", 0, MAX_ROWS)
        if self.projection_dim is not None:
            require_whole(part, self, "projection_dim", 1, MAX_SIZE)


SD2_TEXT_ENCODER = TextEncoderConfig(
    width=1024, layers=24, heads=16, activation="gelu", clip_skip=1, pad_token_id=0, projection_dim=1024
)


@dataclass(frozen=True)
class ImageEncoderConfig:
    """CLIP's vision transformer (Radford et al. 2021, section 2.4). The defaults are those of ViT-B/32."""

    image_size: int = 224  # pixels of a side
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: Activation = "quick_gelu"  # OpenAI's CLIP; most of open_clip's models use the exact gelu
    projection_dim: int = 512
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # of pixels in [0, 1], per channel
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        part = "image encoder"
        make_tuples(self)
        require_whole(part, self, "image_size patch_size width heads projection_dim", 1, MAX_SIZE)
        require_whole(part, self, "layers", 1, MAX_DEPTH)
        require_heads(part, self.width, self.heads)
        _require_activation(part, self.activation)
        require(
            self.image_size % self.patch_size == 0,
            f"image encoder: image_size must be a multiple of patch_size {self.patch_size}, "
            f"not {self.image_size}",
        )
        for name in ("mean", "std"):
            values = getattr(self, name)
            require(
                isinstance(values, tuple) and len(values) == 3 and all(map(is_number, values)),
                f"image encoder: {name} must be a tuple of three numbers, not {shown(values)}",
            )
        require(min(self.std) > 0, f"image encoder: std must be positive, not {shown(self.std)}")

    @property
    def patches(self) -> int:
        """The number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class CLIPConfig:
    """The configurations of an image encoder and a text encoder with one joint space."""

    image_encoder: ImageEncoderConfig
    text_encoder: TextEncoderConfig

    def __post_init__(self) -> None:
        image, text = self.image_encoder, self.text_encoder
        if image.projection_dim != text.projection_dim:
            raise ConfigError(
                f"expected the same projection_dim of both encoders, got {image.projection_dim} for images "
                f"and {text.projection_dim} for texts"
            )
        if text.clip_skip:
            raise ConfigError(
                f"CLIP uses the output of the last text block; expected clip_skip=0, not {text.clip_skip}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as nested dictionaries for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CLIPConfig:
        """The inverse of `to_dict`. Raises ConfigError for an invalid value."""
        try:
            if not isinstance(data, dict) or set(data) != {"image_encoder", "text_encoder"}:
                raise ConfigError(f"expected a mapping of image_encoder and text_encoder, not {shown(data)}")
            image = build(ImageEncoderConfig, data["image_encoder"])
            return cls(image, build(TextEncoderConfig, data["text_encoder"]))
        except ConfigError as error:
            raise ConfigError(f"invalid CLIP configuration: {error}") from error


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
    """The preset of this name. Raises ConfigError, listing the known names, for another name."""
    if name not in PRESETS:
        raise ConfigError(f"unknown CLIP configuration {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
