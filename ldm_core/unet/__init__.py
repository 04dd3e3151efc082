"""The U-Net."""

from ldm_core.unet.config import UNetConfig
from ldm_core.unet.network import UNet

__all__ = ["UNet", "UNetConfig"]
