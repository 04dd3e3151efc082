"""GFPGAN: a U-Net that steers a StyleGAN2 decoder of faces."""

from ldm_core.restoration.gfpgan.config import GFPGANConfig
from ldm_core.restoration.gfpgan.network import GFPGAN

__all__ = ["GFPGAN", "GFPGANConfig"]
