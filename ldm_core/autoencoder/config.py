"""The configurations of the autoencoders, with the field names of CompVis's YAML files."""

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


@dataclass(frozen=True)
class AutoencoderConfig:
    """The KL autoencoder: CompVis's `AutoencoderKL` and its `ddconfig`."""

    embed_dim: int = 4
    z_channels: int = 4
    resolution: int = 256  # the training resolution; only used to find the levels of attn_resolutions
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
        """The factor f of the paper: image pixels per latent pixel along each axis."""
        return 2 ** (len(self.ch_mult) - 1)

    def has_attention(self, level: int) -> bool:
        """Whether the residual blocks of this level (0 is the finest) are followed by attention."""
        return self.resolution // 2**level in self.attn_resolutions


@dataclass(frozen=True)
class AutoencoderVQConfig(AutoencoderConfig):
    """The vector-quantised autoencoder: CompVis's `VQModel` and `VQModelInterface`. The default is VQ-f4."""

    embed_dim: int = 3  # the size of a code
    z_channels: int = 3
    ch_mult: tuple[int, ...] = (1, 2, 4)
    n_embed: int = 8192  # the number of codes
    middle_attention: bool = True  # False: CompVis's attn_type "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_whole("autoencoder", self, "n_embed", 1, MAX_ROWS)
        require_bool("autoencoder", self, "middle_attention")
