"""What the networks' own scripts do differently around the network: facexlib's, and GPEN's.

The scripts of CodeFormer and GFPGAN share facexlib's; GPEN has its own. A network has learned from faces that
were aligned as in its script.
"""

from __future__ import annotations

from dataclasses import dataclass

from ldm_core.restoration.alignment import Alignment
from ldm_core.restoration.masks import ParsedMask


@dataclass(frozen=True)
class Script:
    """alignment      the template, and how the similarity to it is estimated
    border         RGB levels of what an aligned face shows beyond the photo's border
    parsed         how a parsed mask is made
    truncates      the levels of a restored face are truncated, and not rounded
    rounds         the levels of the result are rounded, and not truncated
    smoothed_below pixels of the shorter side of a box, below which the restored face is smoothed; the parser
                   gets it as it was before
    """

    alignment: Alignment
    border: tuple[float, float, float]
    parsed: ParsedMask
    truncates: bool = False
    rounds: bool = False
    smoothed_below: float = 0.0


FACE = (*range(1, 14), 15)  # of ParseNet's classes: skin, its features, ears, hair and earrings
NECK = (16, 17)  # necklace and neck

FACEXLIB = Script("facexlib", (132.0, 133.0, 135.0), ParsedMask(FACE, 11.0, 10, before=False))
GPEN = Script(
    "gpen",
    (0.0, 0.0, 0.0),
    ParsedMask((*FACE, *NECK), 4.0, 26, before=True),
    truncates=True,
    rounds=True,
    smoothed_below=100.0,
)
SCRIPTS = {one.alignment: one for one in (FACEXLIB, GPEN)}
