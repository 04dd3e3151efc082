"""The configuration of RetinaFace; all of it follows from the names and shapes of the tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ldm_core.support.limits import MAX_SIZE, require, require_whole
from ldm_core.support.printable import shown

Backbone = Literal["resnet50", "mobilenet"]


@dataclass(frozen=True)
class RetinaFaceConfig:
    """RetinaFace. The defaults are those of the published `detection_Resnet50_Final.pth`.

    backbone  "resnet50", or "mobilenet" (MobileNet v1)
    stem      channels of the backbone's first convolution; the others are multiples of it
    width     channels of the feature pyramid
    """

    backbone: Backbone = "resnet50"
    stem: int = 64
    width: int = 256

    def __post_init__(self) -> None:
        part = "RetinaFace"
        require(
            self.backbone in get_args(Backbone),
            f"{part}: backbone must be one of {', '.join(get_args(Backbone))}, not {shown(self.backbone)}",
        )
        require_whole(part, self, "stem width", 1, MAX_SIZE)
        require(
            self.stem <= MAX_SIZE // 32, f"{part}: stem must be at most {MAX_SIZE // 32}, not {self.stem}"
        )
        require(self.width % 4 == 0, f"{part}: width must be a multiple of 4, not {self.width}")
