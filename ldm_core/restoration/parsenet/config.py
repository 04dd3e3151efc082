"""The configuration of ParseNet; all of it follows from the shapes of the tensors."""

from __future__ import annotations

from dataclasses import dataclass

from ldm_core.support.limits import MAX_DEPTH, MAX_SIZE, make_tuples, require, require_sizes, require_whole


@dataclass(frozen=True)
class ParseNetConfig:
    """ParseNet. The defaults are those of the published `parsing_parsenet.pth`.

    widths   channels at each level, from the finest on; depth: residual blocks at the coarsest
    classes  of the parts of a face
    """

    widths: tuple[int, ...] = (64, 128, 256, 256, 256)
    depth: int = 10
    classes: int = 19

    def __post_init__(self) -> None:
        part = "ParseNet"
        make_tuples(self)
        require_sizes(part, self, "widths", low=1)
        require(len(self.widths) >= 1, f"{part}: widths must not be empty")
        require_whole(part, self, "depth", 0, MAX_DEPTH)
        require_whole(part, self, "classes", 1, MAX_SIZE)

    @property
    def downsampling(self) -> int:
        """Pixels per feature of the coarsest level along each axis."""
        return 2 ** (len(self.widths) - 1)
