"""The configuration of the U-Net. Field names are CompVis's own, as in `v1-inference.yaml`."""

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
    context_dim: int | None = 768  # None: no cross-attention, and self-attention blocks in its place
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
        require_whole(part, self, "in_channels out_channels model_channels", 1, MAX_SIZE)
        for name in ("num_heads", "num_head_channels", "context_dim", "adm_in_channels"):
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
