"""The KL autoencoder's distribution over latents (Kingma and Welling 2014, arXiv:1312.6114, appendix B)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_core.noise import Generators, randn


@dataclass(frozen=True)
class DiagonalGaussian:
    """q(z | image): independent normal distributions with `mean` and `logvar`, each (B, C, h, w)."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> DiagonalGaussian:
        """From the encoder's output (B, 2C, h, w). The log-variance is clamped to [-30, 20]."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    @property
    def std(self) -> Tensor:
        """The standard deviation of each value: (B, C, h, w)."""
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        """The variance of each value: (B, C, h, w)."""
        return torch.exp(self.logvar)

    def sample(self, generator: Generators = None) -> Tensor:
        """A sample (B, C, h, w). generator: one for all images or one per image; drawn on the CPU."""
        noise = randn(self.mean.shape, generator)
        return self.mean + self.std * noise.to(self.mean)

    def mode(self) -> Tensor:
        """The most likely latent, which is the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """KL(self || other) in nats, summed over each image: (B,). By default other is N(0, I)."""
        if other is None:
            terms = self.mean**2 + self.var - 1.0 - self.logvar
        else:
            terms = (
                (self.mean - other.mean) ** 2 / other.var
                + self.var / other.var
                - 1.0
                - self.logvar
                + other.logvar
            )
        return 0.5 * terms.sum(dim=(1, 2, 3))

    def nll(self, sample: Tensor) -> Tensor:
        """-log q(sample) in nats, summed over each image: (B,)."""
        terms = math.log(2 * math.pi) + self.logvar + (sample - self.mean) ** 2 / self.var
        return 0.5 * terms.sum(dim=(1, 2, 3))
