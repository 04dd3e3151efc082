"""The configuration of GPEN."""

from __future__ import annotations

from dataclasses import dataclass

from ldm_core.support.limits import MAX_DEPTH, MAX_SIZE, make_tuples, require, require_sizes, require_whole


@dataclass(frozen=True)
class GPENConfig:
    """GPEN. The defaults are those of the published `GPEN-BFR-512.pth`.

    widths      channels for 4, 8, 16, … pixels, of the encoder and of each half of the decoder's
    style_dim   of the style; mlp_layers: of the mapping network
    """

    widths: tuple[int, ...] = (512, 512, 512, 512, 512, 256, 128, 64)
    style_dim: int = 512
    mlp_layers: int = 8

    def __post_init__(self) -> None:
        part = "GPEN"
        make_tuples(self)
        require_sizes(part, self, "widths", low=1)
        require(len(self.widths) >= 2, f"{part}: widths must be of two levels at least, not {self.widths}")
        require_whole(part, self, "style_dim", 1, MAX_SIZE)
        require_whole(part, self, "mlp_layers", 0, MAX_DEPTH)

    @property
    def size(self) -> int:
        """Pixels of a side of its pictures."""
        return 4 * 2 ** (len(self.widths) - 1)
