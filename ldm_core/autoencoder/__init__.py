"""The autoencoder: images to latents and back."""

from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.autoencoder.gaussian import DiagonalGaussian
from ldm_core.autoencoder.kl import AutoencoderKL

__all__ = ["AutoencoderConfig", "AutoencoderKL", "DiagonalGaussian"]
