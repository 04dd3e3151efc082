"""The configurations of CLIP's two encoders and of a whole CLIP, and the published ones (Radford et al. 2021,
table 20).

OpenAI's models go by OpenAI's own names. open_clip trained networks of the same sizes with the exact gelu;
the tensors of the two have the same names and shapes, and weights of one kind in the other give plausible
nonsense. So theirs have the prefix `open_clip/`. (Those that open_clip calls `-quickgelu` have OpenAI's
activation, and some were trained on pixels of another mean: their `open_clip_config.json` says so.)
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
    clip_skip: int = 0  # final blocks whose output is not used: SD2 takes the penultimate layer, 1
    pad_token_id: int = 49407  # OpenAI's tokenizer pads with the end-of-text token, open_clip with 0
    projection_dim: int | None = None  # open_clip files also hold the projection of CLIP's joint space

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


@dataclass(frozen=True)
class ImageEncoderConfig:
    """CLIP's vision transformer (Radford et al. 2021, section 2.4); the defaults are ViT-B/32's."""

    image_size: int = 224  # pixels of a side
    patch_size: int = 32
    width: int = 768
    layers: int = 12
    heads: int = 12
    activation: Activation = "quick_gelu"  # OpenAI's CLIP; most of open_clip's models use the exact gelu
    projection_dim: int = 512
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # of a pixel in [0, 1], by colour
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
            f"image encoder: images of {self.image_size} pixels are no whole number of patches of "
            f"{self.patch_size}",
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
        """How many patches an image is cut into."""
        return (self.image_size // self.patch_size) ** 2


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
