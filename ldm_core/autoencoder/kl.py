"""The KL autoencoder: images to a Gaussian over latents that are f times smaller, and latents to images.

Section 3.1 and appendix G of the latent diffusion paper (arXiv:2112.10752); the Gaussian and its KL
divergence follow Kingma and Welling 2014 (arXiv:1312.6114, appendix B). CompVis's counterpart is
`AutoencoderKL`.
"""

from __future__ import annotations

from torch import Tensor

from ldm_core.autoencoder.base import AutoencoderBase
from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.autoencoder.gaussian import DiagonalGaussian


class AutoencoderKL(AutoencoderBase):
    """The autoencoder whose encoder outputs the mean and the log-variance of each latent value."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config, tensors=2)

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """images (B, 3, H, W) in [-1, 1], H and W multiples of f -> q(z | images), (B, embed_dim, h, w)."""
        return DiagonalGaussian.from_moments(self._encode(images))
