"""The published files of the networks for faces, and the terms under which their weights stand.

The licence of this package covers its code, not weights that come from elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ldm_core.restoration.codeformer.config import CodeFormerConfig, FaceAutoencoderConfig
from ldm_core.restoration.gfpgan.config import GFPGANConfig
from ldm_core.restoration.gpen.config import GPENConfig
from ldm_core.restoration.parsenet.config import ParseNetConfig
from ldm_core.restoration.retinaface.config import RetinaFaceConfig

S_LAB = "S-Lab License 1.0: non-commercial use only"
APACHE = (
    "Apache License 2.0, with parts of third parties under their own terms (StyleGAN2's: NVIDIA Source Code "
    "License, non-commercial use only)"
)
MIT = "MIT License"
ALIBABA = "© Alibaba, 2021: for academic and non-commercial use only"
UNKNOWN = "not known: these are the tensors of no published file"


@dataclass(frozen=True)
class Published:
    """A published file: its name, its repository, its network and the licence of its weights."""

    file: str
    repository: str
    config: Any
    licence: str


def _codeformer(file: str, config: Any) -> Published:
    return Published(file, "sczhou/CodeFormer", config, S_LAB)


def _gfpgan(file: str, config: Any) -> Published:
    return Published(file, "TencentARC/GFPGAN", config, APACHE)


def _gpen(size: int, *widths: int) -> Published:
    return Published(f"GPEN-BFR-{size}.pth", "yangxy/GPEN", GPENConfig(widths), ALIBABA)


def _facexlib(file: str, config: Any) -> Published:
    return Published(file, "xinntao/facexlib", config, MIT)


PARTLY = (32, 64, 128)  # where the encoder's features reach the generator in the files for other tasks
INPAINTING = CodeFormerConfig(codes=512, fuse=PARTLY)
COLORIZATION = CodeFormerConfig(fuse=PARTLY)

PUBLISHED = (
    _codeformer("codeformer.pth", CodeFormerConfig()),
    _codeformer("codeformer_inpainting.pth", INPAINTING),
    _codeformer("codeformer_colorization.pth", COLORIZATION),
    _codeformer("vqgan_code1024.pth", FaceAutoencoderConfig()),
    _gfpgan("GFPGANv1.4.pth", GFPGANConfig()),
    _gfpgan("GFPGANv1.3.pth", GFPGANConfig()),
    _gfpgan("GFPGANCleanv1-NoCE-C2.pth", GFPGANConfig()),
    _gfpgan("GFPGANv1.pth", GFPGANConfig((512, 512, 512, 512, 256, 128, 64, 32), variant="original")),
    _gpen(256, 256, 256, 256, 256, 128, 64, 32),
    _gpen(512, 512, 512, 512, 512, 512, 256, 128, 64),
    _gpen(1024, 512, 512, 512, 512, 512, 256, 128, 64, 32),
    _gpen(2048, 512, 512, 512, 512, 512, 256, 128, 64, 32, 16),
    _facexlib("parsing_parsenet.pth", ParseNetConfig()),
    _facexlib("detection_Resnet50_Final.pth", RetinaFaceConfig()),
    _facexlib("detection_mobilenet0.25_Final.pth", RetinaFaceConfig("mobilenet", 8, 64)),
)


def files(config: Any) -> tuple[str, ...]:
    """The names of the published files with exactly the tensors of this configuration."""
    return tuple(one.file for one in PUBLISHED if one.config == config)


def licence(config: Any) -> str:
    """The licence of the published weights of this configuration."""
    return next((one.licence for one in PUBLISHED if one.config == config), UNKNOWN)
