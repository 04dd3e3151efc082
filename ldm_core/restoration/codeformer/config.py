"""The configurations of CodeFormer and of its autoencoder alone; all of each follows from tensors' shapes."""

from __future__ import annotations

from dataclasses import dataclass

from ldm_core.support.limits import (
    MAX_DEPTH,
    MAX_ROWS,
    MAX_SIZE,
    make_tuples,
    require,
    require_blocks,
    require_heads,
    require_sizes,
    require_whole,
    require_widths,
)

HEADS = 8  # of the transformer in all published files; shapes do not tell


@dataclass(frozen=True)
class FaceAutoencoderConfig:
    """The VQ autoencoder of faces. The defaults are those of the published `vqgan_code1024.pth`."""

    ch: int = 64
    ch_mult: tuple[int, ...] = (1, 2, 2, 4, 4, 8)
    num_res_blocks: int = 2
    code_dim: int = 256
    codes: int = 1024

    def __post_init__(self) -> None:
        part = "face autoencoder"
        make_tuples(self)
        require_whole(part, self, "ch code_dim", 1, MAX_SIZE)
        require_whole(part, self, "num_res_blocks", 1, MAX_DEPTH)
        require_whole(part, self, "codes", 1, MAX_ROWS)
        require_sizes(part, self, "ch_mult", low=1)
        require_widths(part, "ch_mult", self.ch, self.ch_mult)
        require(self.ch % 32 == 0, f"{part}: ch must be a multiple of 32 (group norm), not {self.ch}")
        require_blocks(part, len(self.ch_mult) * self.num_res_blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the finest on."""
        return tuple(self.ch * mult for mult in self.ch_mult)

    @property
    def downsampling(self) -> int:
        """Pixels per code along each axis."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class CodeFormerConfig(FaceAutoencoderConfig):
    """CodeFormer. The defaults are those of the published `codeformer.pth`.

    size    pixels of a side of the only pictures that the table of positions allows
    width   of the transformer; layers: its number of layers
    fuse    the sizes, in pixels, at which the encoder's features reach the generator
    """

    size: int = 512
    width: int = 512
    layers: int = 9
    fuse: tuple[int, ...] = (32, 64, 128, 256)

    def __post_init__(self) -> None:
        super().__post_init__()
        part = "CodeFormer"
        require_whole(part, self, "size width", 1, MAX_SIZE)
        require_whole(part, self, "layers", 0, MAX_DEPTH)
        require_sizes(part, self, "fuse", low=1)
        require_heads(part, self.width, HEADS)
        f = self.downsampling
        require(self.size % f == 0, f"{part}: size must be a multiple of {f}, not {self.size}")
        sizes = self.level_sizes[:-1]
        require(
            set(self.fuse) <= set(sizes) and len(set(self.fuse)) == len(self.fuse),
            f"{part}: fuse must be some of {sizes}, not {self.fuse}",
        )

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """Pixels of a side at each level, from the finest on."""
        return tuple(self.size // 2**level for level in range(len(self.ch_mult)))

    @property
    def tokens(self) -> int:
        """The number of codes of a picture."""
        return (self.size // self.downsampling) ** 2
