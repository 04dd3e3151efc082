"""Restoration of faces: CodeFormer, GFPGAN and GPEN, and the networks that find and parse faces.

`load`, which needs the registry of networks, is an alias of `ldm_core.loading.restorer.load`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ldm_core.restoration.alignment import inverse, similarity
from ldm_core.restoration.codeformer import (
    CodeFormer,
    CodeFormerConfig,
    FaceAutoencoder,
    FaceAutoencoderConfig,
)
from ldm_core.restoration.face import Face
from ldm_core.restoration.found import detect
from ldm_core.restoration.gfpgan import GFPGAN, GFPGANConfig
from ldm_core.restoration.gpen import GPEN, GPENConfig
from ldm_core.restoration.parsenet import ParseNet, ParseNetConfig
from ldm_core.restoration.restore import restore
from ldm_core.restoration.restorer import Restorer
from ldm_core.restoration.retinaface import FaceDetector, RetinaFace, RetinaFaceConfig

if TYPE_CHECKING:
    from ldm_core.loading.restorer import load

__all__ = [
    "GFPGAN",
    "GPEN",
    "CodeFormer",
    "CodeFormerConfig",
    "Face",
    "FaceAutoencoder",
    "FaceAutoencoderConfig",
    "FaceDetector",
    "GFPGANConfig",
    "GPENConfig",
    "ParseNet",
    "ParseNetConfig",
    "Restorer",
    "RetinaFace",
    "RetinaFaceConfig",
    "detect",
    "inverse",
    "load",
    "restore",
    "similarity",
]


def __getattr__(name: str) -> Any:
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("ldm_core.loading.restorer").load
