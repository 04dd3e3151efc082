"""The configuration of GFPGAN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ldm_core.support.limits import MAX_DEPTH, MAX_SIZE, make_tuples, require, require_sizes, require_whole
from ldm_core.support.printable import shown

Variant = Literal["clean", "bilinear", "original"]


@dataclass(frozen=True)
class GFPGANConfig:
    """GFPGAN. The defaults are those of the published files v1.2, v1.3 and v1.4.

    widths      channels of the decoder for 4, 8, 16, … pixels; the U-Net has half of them
    style_dim   of each of the styles, two for each width
    mlp_layers  of the mapping network, which is in the files and restores nothing
    variant     "clean": weights as they are used, bilinear resampling (v1.2 and later)
                "bilinear": weights of unit variance, bilinear resampling
                "original": weights of unit variance, resampling with blurs (v1)
    """

    widths: tuple[int, ...] = (512, 512, 512, 512, 512, 256, 128, 64)
    style_dim: int = 512
    mlp_layers: int = 8
    variant: Variant = "clean"

    def __post_init__(self) -> None:
        part = "GFPGAN"
        make_tuples(self)
        require_sizes(part, self, "widths", low=2)
        require(len(self.widths) >= 2, f"{part}: widths must be of two levels at least, not {self.widths}")
        require(
            all(width % 2 == 0 for width in self.widths), f"{part}: widths must be even, not {self.widths}"
        )
        require_whole(part, self, "style_dim", 1, MAX_SIZE)
        require_whole(part, self, "mlp_layers", 0, MAX_DEPTH)
        require(
            self.variant in get_args(Variant),
            f"{part}: variant must be one of {', '.join(get_args(Variant))}, not {shown(self.variant)}",
        )

    @property
    def size(self) -> int:
        """Pixels of a side of its pictures."""
        return 4 * 2 ** (len(self.widths) - 1)

    @property
    def scaled(self) -> bool:
        """Whether weights have unit variance and are scaled when they are used."""
        return self.variant != "clean"
