"""Configurations: one frozen dataclass per network, one for the whole model, and the published presets.

Field names are CompVis's own wherever CompVis has one, so that a `v1-inference.yaml` reads across
line by line. A preset is written as what changes from the one before it.

Letters used in shapes throughout the package:

    B batch   C channels   H, W pixels   h, w latent rows and columns   N tokens or positions
    D head size   T diffusion steps of the noise schedule   n sampling steps

Sources: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"
(arXiv:2112.10752), and the configuration files that CompVis and Stability AI publish beside it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from ldm_core.limits import (
    MAX_DEPTH,
    MAX_ROWS,
    MAX_SCALE,
    MAX_SIZE,
    MAX_TIMESTEPS,
    ConfigError,
    is_number,
    make_tuples,
    require,
    require_blocks,
    require_bool,
    require_heads,
    require_sizes,
    require_whole,
    require_widths,
)
from ldm_core.printable import shown

BetaSchedule = Literal["scaled_linear", "linear", "cosine", "sqrt"]
PredictionType = Literal["eps", "v", "x0"]
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
class UNetConfig:
    """The cross-attention U-Net, CompVis's `UNetModel` with `use_spatial_transformer`."""

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (4, 2, 1)  # downsampling factors that have attention
    num_heads: int | None = 8  # heads per level, or
    num_head_channels: int | None = None  # the size of a head; exactly one of the two is given
    transformer_depth: int = 1
    context_dim: int = 768
    use_linear_in_transformer: bool = False  # how proj_in/out are stored: 1x1 convolution or linear
    disable_self_attentions: tuple[bool, ...] = ()  # per level: attend to the context instead
    num_classes: int | None = None  # a table of class embeddings (the upscaler's noise levels), or
    adm_in_channels: int | None = None  # a vector condition of this length (unCLIP's image embedding)

    def __post_init__(self) -> None:
        part = "unet"
        make_tuples(self)
        require(
            (self.num_heads is None) != (self.num_head_channels is None),
            "unet: give num_heads (SD1) or num_head_channels (SD2), and only one; "
            f"got num_heads={shown(self.num_heads)}, num_head_channels={shown(self.num_head_channels)}",
        )
        require(
            self.num_classes is None or self.adm_in_channels is None,
            "unet: num_classes and adm_in_channels exclude one another",
        )
        require_whole(part, self, "in_channels out_channels model_channels context_dim", 1, MAX_SIZE)
        for name in ("num_heads", "num_head_channels", "adm_in_channels"):
            if getattr(self, name) is not None:
                require_whole(part, self, name, 1, MAX_SIZE)
        if self.num_classes is not None:
            require_whole(part, self, "num_classes", 1, MAX_ROWS)
        require_whole(part, self, "num_res_blocks transformer_depth", 1, MAX_DEPTH)
        require_sizes(part, self, "channel_mult", low=1)
        require_sizes(part, self, "attention_resolutions", low=0)
        require_bool(part, self, "use_linear_in_transformer")
        require_widths(part, "channel_mult", self.model_channels, self.channel_mult)
        require(
            self.model_channels % 32 == 0,
            f"unet: model_channels must be a multiple of 32 (group norm), not {self.model_channels}",
        )
        disabled = self.disable_self_attentions
        require(
            isinstance(disabled, tuple)
            and len(disabled) in (0, len(self.channel_mult))
            and all(isinstance(value, bool) for value in disabled),
            f"unet: disable_self_attentions must be a tuple of one value, true or false, for each of the "
            f"{len(self.channel_mult)} levels, not {shown(disabled)}",
        )
        require_blocks(part, len(self.channel_mult) * self.num_res_blocks * (1 + self.transformer_depth))
        # Files differ in their order, which means nothing, and in factors that the network does not reach.
        reached = {2**level for level in self.attention_levels}
        object.__setattr__(self, "attention_resolutions", tuple(sorted(reached, reverse=True)))
        for level in self.attention_levels:
            self.heads(self.model_channels * self.channel_mult[level])

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """The levels (0 is the finest) that have spatial transformers; the middle block always has."""
        return tuple(i for i in range(len(self.channel_mult)) if 2**i in self.attention_resolutions)

    @property
    def downsampling(self) -> int:
        """h and w of the input must be multiples of this."""
        return 2 ** (len(self.channel_mult) - 1)

    def heads(self, channels: int) -> int:
        """How many attention heads a level of so many channels has."""
        if self.num_heads is not None:
            require(
                channels % self.num_heads == 0,
                f"unet: {channels} channels are not divisible by num_heads={self.num_heads}",
            )
            return self.num_heads
        assert self.num_head_channels is not None
        require(
            channels % self.num_head_channels == 0,
            f"unet: {channels} channels are not divisible by num_head_channels={self.num_head_channels}",
        )
        return channels // self.num_head_channels


@dataclass(frozen=True)
class AutoencoderConfig:
    """The KL autoencoder, CompVis's `AutoencoderKL` with its `ddconfig`."""

    embed_dim: int = 4
    z_channels: int = 4
    resolution: int = 256  # the training resolution; only says at which level attn_resolutions lie
    in_channels: int = 3
    out_ch: int = 3
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        part = "autoencoder"
        make_tuples(self)
        require_whole(part, self, "embed_dim z_channels resolution in_channels out_ch ch", 1, MAX_SIZE)
        require_whole(part, self, "num_res_blocks", 1, MAX_DEPTH)
        require_sizes(part, self, "ch_mult", low=1)
        require_sizes(part, self, "attn_resolutions", low=0)
        require_widths(part, "ch_mult", self.ch, self.ch_mult)
        require(self.ch % 32 == 0, f"autoencoder: ch must be a multiple of 32 (group norm), not {self.ch}")
        require_blocks(part, len(self.ch_mult) * self.num_res_blocks)

    @property
    def downsampling(self) -> int:
        """f in the paper: pixels per latent row or column."""
        return 2 ** (len(self.ch_mult) - 1)

    def has_attention(self, level: int) -> bool:
        """Whether the residual blocks of this level (0 is the finest) are followed by attention."""
        return self.resolution // 2**level in self.attn_resolutions


@dataclass(frozen=True)
class NoiseScheduleConfig:
    """The forward process. CompVis calls `scaled_linear` "linear": it is linear in sqrt(beta).

    zero_terminal_snr: the betas are then changed so that nothing of the image is left at the last timestep
        (`ldm_core.noise_schedule.zero_terminal_snr`), for models that predict v or x0.
    """

    timesteps: int = 1000
    beta_schedule: BetaSchedule = "scaled_linear"
    linear_start: float = 0.00085
    linear_end: float = 0.012
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        part = "noise schedule"
        require_whole(part, self, "timesteps", 1, MAX_TIMESTEPS)
        require(
            is_number(self.linear_start)
            and is_number(self.linear_end)
            and 0 < self.linear_start <= self.linear_end <= 1,
            "noise schedule: linear_start and linear_end must be numbers with 0 < start <= end <= 1, not "
            f"{shown(self.linear_start)} and {shown(self.linear_end)}",
        )
        require(
            isinstance(self.beta_schedule, str) and self.beta_schedule in get_args(BetaSchedule),
            f"noise schedule: unknown beta_schedule {shown(self.beta_schedule)}; "
            "expected 'scaled_linear', 'linear', 'cosine' or 'sqrt'",
        )
        require_bool(part, self, "zero_terminal_snr")
        require(
            self.timesteps > 1 or not self.zero_terminal_snr,
            "noise schedule: zero_terminal_snr needs two timesteps or more, not 1",
        )


_PARTS: dict[str, type[Any]] = {
    "text_encoder": TextEncoderConfig,
    "unet": UNetConfig,
    "autoencoder": AutoencoderConfig,
    "noise_schedule": NoiseScheduleConfig,
}


@dataclass(frozen=True)
class LatentDiffusionConfig:
    """A whole model: its three networks, its forward process, and how they are joined."""

    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    noise_schedule: NoiseScheduleConfig = field(default_factory=NoiseScheduleConfig)
    latent_scale: float = 0.18215  # CompVis's scale_factor: unet latents = latent_scale * autoencoder latents
    prediction: PredictionType = "eps"
    image_size: int = 512  # pixels, the size that the model was trained for

    def __post_init__(self) -> None:
        for name, kind in _PARTS.items():
            value = getattr(self, name)
            require(isinstance(value, kind), f"{name} must be a {kind.__name__}, not {shown(value)}")
        require(
            isinstance(self.prediction, str) and self.prediction in get_args(PredictionType),
            f"prediction must be 'eps', 'v' or 'x0', not {shown(self.prediction)}",
        )
        require(
            is_number(self.latent_scale) and 0 < self.latent_scale <= MAX_SCALE,
            f"latent_scale must be a positive number up to {MAX_SCALE:g}, not {shown(self.latent_scale)}",
        )
        require_whole("model", self, "image_size", 1, MAX_SIZE)
        require(
            self.unet.context_dim == self.text_encoder.width,
            f"the unet attends to vectors of {self.unet.context_dim} (context_dim), "
            f"but the text encoder gives vectors of {self.text_encoder.width} (width)",
        )
        require(
            self.unet.out_channels == self.autoencoder.embed_dim,
            f"the unet gives {self.unet.out_channels} channels (out_channels), "
            f"but the autoencoder's latents have {self.autoencoder.embed_dim} (embed_dim)",
        )

    @property
    def size_multiple(self) -> int:
        """Height and width in pixels must be multiples of this."""
        return self.autoencoder.downsampling * self.unet.downsampling

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LatentDiffusionConfig:
        """The inverse of `to_dict`. Raises ConfigError for any other value, naming unknown fields."""
        require(isinstance(data, dict), f"expected a mapping, not {shown(data)}")
        values = {key: build(_PARTS[key], value) if key in _PARTS else value for key, value in data.items()}
        return build(cls, values)


def build(cls: type[Any], values: Any) -> Any:
    """A config dataclass from JSON values; lists become the tuples that it holds. Raises ConfigError."""
    require(isinstance(values, dict), f"{cls.__name__}: expected a mapping, not {shown(values)}")
    unknown = set(values) - {f.name for f in fields(cls)}
    require(not unknown, f"{cls.__name__}: unknown field(s) {shown(unknown)}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


SD1 = LatentDiffusionConfig()
SD1_INPAINT = replace(SD1, unet=replace(SD1.unet, in_channels=9))

SD2_BASE = replace(
    SD1,
    text_encoder=TextEncoderConfig(
        width=1024, layers=24, heads=16, activation="gelu", clip_skip=1, pad_token_id=0, projection_dim=1024
    ),
    unet=replace(
        SD1.unet, num_heads=None, num_head_channels=64, context_dim=1024, use_linear_in_transformer=True
    ),
)
SD2_V = replace(SD2_BASE, prediction="v", image_size=768)
SD2_INPAINT = replace(SD2_BASE, unet=replace(SD2_BASE.unet, in_channels=9))
SD2_DEPTH = replace(SD2_BASE, unet=replace(SD2_BASE.unet, in_channels=5))
SD2_UNCLIP_H = replace(SD2_V, unet=replace(SD2_V.unet, adm_in_channels=2048))
SD2_UNCLIP_L = replace(SD2_V, unet=replace(SD2_V.unet, adm_in_channels=1536))
X4_UPSCALER = replace(
    SD2_V,
    unet=replace(
        SD2_V.unet,
        in_channels=7,
        model_channels=256,
        channel_mult=(1, 2, 2, 4),
        attention_resolutions=(2, 4, 8),
        num_heads=8,
        num_head_channels=None,
        disable_self_attentions=(True, True, True, False),
        num_classes=1000,
    ),
    autoencoder=replace(SD2_V.autoencoder, ch_mult=(1, 2, 4)),
    noise_schedule=NoiseScheduleConfig(linear_start=0.0001, linear_end=0.02),
    latent_scale=0.08333,
    image_size=512,
)

PRESETS: dict[str, LatentDiffusionConfig] = {
    "sd1": SD1,
    "sd1-inpaint": SD1_INPAINT,
    "sd2-base": SD2_BASE,
    "sd2-v": SD2_V,
    "sd2-inpaint": SD2_INPAINT,
    "sd2-depth": SD2_DEPTH,
    "sd2-unclip-h": SD2_UNCLIP_H,
    "sd2-unclip-l": SD2_UNCLIP_L,
    "x4-upscaler": X4_UPSCALER,
}


def preset(name: str) -> LatentDiffusionConfig:
    """The preset of this name. Raises ConfigError with the known names."""
    if name not in PRESETS:
        raise ConfigError(f"unknown model configuration {name!r}; expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
