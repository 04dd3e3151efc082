"""A network for faces with what is known about its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ldm_core.restoration.published import COLORIZATION, INPAINTING, files, licence

# How the original scripts call the networks of files for other tasks than restoring.
SCRIPTS: Mapping[Any, Mapping[str, Any]] = {
    INPAINTING: {"w": 1.0, "adain": False},
    COLORIZATION: {"w": 0.0, "adain": True},
}


@dataclass(frozen=True)
class Restorer:
    """What `restoration.load` returns.

    network  the network: a CodeFormer, GFPGAN or GPEN takes faces (B, 3, size, size) in [-1, 1] and returns
             them restored
    kind     "codeformer", "gfpgan", "gpen", "face_autoencoder", "parsenet" or "retinaface"
    config   of the network
    files    the published files with exactly these tensors
    licence  of the weights of these files
    options  the arguments with which the original script for this file calls the network, where they differ
             from the network's defaults
    """

    network: nn.Module
    kind: str
    config: Any
    files: tuple[str, ...] = field(init=False)
    licence: str = field(init=False)
    options: Mapping[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", files(self.config))
        object.__setattr__(self, "licence", licence(self.config))
        object.__setattr__(self, "options", SCRIPTS.get(self.config, {}))
