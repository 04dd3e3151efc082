"""GPEN: an encoder's features in place of the noise of a StyleGAN2 decoder of faces."""

from ldm_core.restoration.gpen.config import GPENConfig
from ldm_core.restoration.gpen.network import GPEN

__all__ = ["GPEN", "GPENConfig"]
