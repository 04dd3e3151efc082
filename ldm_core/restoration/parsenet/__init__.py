"""ParseNet: which part of a face each pixel belongs to."""

from ldm_core.restoration.parsenet.config import ParseNetConfig
from ldm_core.restoration.parsenet.network import ParseNet

__all__ = ["ParseNet", "ParseNetConfig"]
