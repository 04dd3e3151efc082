"""The autoencoders: images to latents and back."""

from ldm_core.autoencoder.config import AutoencoderConfig, AutoencoderVQConfig
from ldm_core.autoencoder.gaussian import DiagonalGaussian
from ldm_core.autoencoder.kl import AutoencoderKL
from ldm_core.autoencoder.vq import AutoencoderVQ, PointMass

__all__ = [
    "AutoencoderConfig",
    "AutoencoderKL",
    "AutoencoderVQ",
    "AutoencoderVQConfig",
    "DiagonalGaussian",
    "PointMass",
]
