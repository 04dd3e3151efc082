"""The configuration of the U-Net. Field names are those of CompVis's `v1-inference.yaml`."""

from __future__ import annotations

from dataclasses import dataclass

from ldm_core.support.limits import (
    MAX_DEPTH,
    MAX_ROWS,
    MAX_SIZE,
    make_tuples,
    require,
    require_blocks,
    require_bool,
    require_sizes,
    require_whole,
    require_widths,
)
from ldm_core.support.printable import shown


@dataclass(frozen=True)
class UNetConfig:
    """The U-Net, CompVis's `UNetModel`."""

    in_channels: int = 4
    out_channels: int = 4
    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (4, 2, 1)  # downsampling factors that have attention
    num_heads: int | None = 8  # heads at every level, or
    num_head_channels: int | None = None  # the size of a head; exactly one of the two is set
    transformer_depth: int = 1
    context_dim: int | None = 768  # None: self-attention blocks instead of transformers
    use_scale_shift_norm: bool = False  # residual blocks scale and shift their norm by the time embedding
    resblock_updown: bool = False  # residual blocks resample, instead of a convolution
    use_linear_in_transformer: bool = (
        False  # whether files store proj_in/out as linear layers, not 1x1 convolutions
    )
    disable_self_attentions: tuple[bool, ...] = ()  # per level: attend to the context instead
    num_classes: int | None = None  # a table of class embeddings (the upscaler's noise levels), or
    adm_in_channels: int | None = None  # the size of a vector condition (unCLIP's image embedding)
    gated_self_attention: bool = False  # GLIGEN's, over pixels and objects with boxes

    def __post_init__(self) -> None:
        part = "unet"
        make_tuples(self)
        require(
            (self.num_heads is None) != (self.num_head_channels is None),
            "unet: set exactly one of num_heads (SD1) and num_head_channels (SD2); "
            f"got num_heads={shown(self.num_heads)}, num_head_channels={shown(self.num_head_channels)}",
        )
        require(
            self.num_classes is None or self.adm_in_channels is None,
            "unet: set at most one of num_classes and adm_in_channels",
        )
        require_whole(part, self, "in_channels out_channels model_channels", 1, MAX_SIZE)
        for name in ("num_heads", "num_head_channels", "context_dim", "adm_in_channels"):
            if getattr(self, name) is not None:
                require_whole(part, self, name, 1, MAX_SIZE)
        if self.num_classes is not None:
            require_whole(part, self, "num_classes", 1, MAX_ROWS)
        require_whole(part, self, "num_res_blocks transformer_depth", 1, MAX_DEPTH)
        require_sizes(part, self, "channel_mult", low=1)
        require_sizes(part, self, "attention_resolutions", low=0)
        flags = ("use_linear_in_transformer", "use_scale_shift_norm", "resblock_updown")
        for name in (*flags, "gated_self_attention"):
            require_bool(part, self, name)
        require(
            not self.gated_self_attention or self.context_dim is not None,
            "unet: gated_self_attention requires cross-attention (context_dim)",
        )
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
            f"unet: disable_self_attentions must be a tuple of one boolean for each of the "
            f"{len(self.channel_mult)} levels, not {shown(disabled)}",
        )
        require_blocks(part, len(self.channel_mult) * self.num_res_blocks * (1 + self.transformer_depth))
        # Files may list the factors in any order and include some that the network does not reach.
        reached = {2**level for level in self.attention_levels}
        object.__setattr__(self, "attention_resolutions", tuple(sorted(reached, reverse=True)))
        for level in (*self.attention_levels, -1):  # the middle block is as wide as the last level
            self.heads(self.model_channels * self.channel_mult[level])

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """The levels (0 is the finest) with attention; the middle block always has it."""
        return tuple(i for i in range(len(self.channel_mult)) if 2**i in self.attention_resolutions)

    @property
    def downsampling(self) -> int:
        """h and w of the input must be multiples of this factor."""
        return 2 ** (len(self.channel_mult) - 1)

    def heads(self, channels: int) -> int:
        """The number of attention heads of a level with this many channels."""
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
