"""The vector-quantised autoencoder: the decoder receives the nearest entry of a learned codebook per pixel.

    k = argmin_j |z - e_j|^2,    z_q = e_k

Section 3.1 of the latent diffusion paper (arXiv:2112.10752); van den Oord et al. 2017 (arXiv:1711.00937,
equations 1 and 2). CompVis's counterpart is `VQModelInterface`: the diffusion model works on the latents
before quantisation, which is a part of the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.autoencoder.base import AutoencoderBase
from ldm_core.autoencoder.config import AutoencoderVQConfig
from ldm_core.noise import Generators

MAX_DISTANCES = 2**24  # computed at once: 64 MiB in float32


@dataclass(frozen=True)
class PointMass:
    """A distribution over latents (B, C, h, w) without randomness: every sample is `latents`."""

    latents: Tensor

    def sample(self, generator: Generators = None) -> Tensor:
        """The latents. No random numbers are drawn."""
        return self.latents

    def mode(self) -> Tensor:
        """The latents."""
        return self.latents


class AutoencoderVQ(AutoencoderBase):
    """Encoder and decoder with a codebook between them: `codebook` (n_embed, embed_dim), one code per row."""

    config: AutoencoderVQConfig

    def __init__(self, config: AutoencoderVQConfig) -> None:
        super().__init__(config, tensors=1, middle_attention=config.middle_attention)
        bound = 1.0 / config.n_embed
        self.codebook = nn.Parameter(torch.empty(config.n_embed, config.embed_dim).uniform_(-bound, bound))

    def encode(self, images: Tensor) -> PointMass:
        """images (B, 3, H, W) in [-1, 1], H and W multiples of f -> latents (B, embed_dim, h, w).

        The latents are not quantised: `.mode()` and `.sample()` give the encoder's output.
        """
        return PointMass(self._encode(images))

    def quantize(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Latents h (B, embed_dim, h, w) -> (the nearest codes z_q of the same shape, indices (B, h, w)).

        indices: LongTensor of rows of `codebook`; of equally near codes, the first. Gradients pass from z_q
        to h unchanged (the straight-through estimator); the codebook receives none.
        """
        self._require_latents(h)
        indices = nearest_codes(self.codebook, h.permute(0, 2, 3, 1))
        # The second term is 0 and has the gradient. Where h is not finite it is NaN, which a code would hide.
        return look_up(self.codebook, indices).detach() + (h - h.detach()), indices

    def decode(self, h: Tensor, *, quantize: bool = True) -> Tensor:
        """Unscaled latents h (B, embed_dim, h, w) -> images (B, 3, h*f, w*f), approximately in [-1, 1].

        quantize: replace the latents by their nearest codes first; False for latents that are codes already.
        """
        return super().decode(self.quantize(h)[0] if quantize else h)

    def decode_indices(self, indices: Tensor) -> Tensor:
        """LongTensor (B, h, w) of rows of the codebook -> images (B, 3, h*f, w*f)."""
        if indices.ndim != 3 or indices.dtype != torch.long:
            raise ValueError(
                f"autoencoder: expected a LongTensor of indices (B, h, w), got {indices.dtype} of "
                f"{tuple(indices.shape)}"
            )
        last = len(self.codebook) - 1
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) <= last:
            raise ValueError(
                f"autoencoder: expected indices in 0..{last}, got {int(indices.min())}..{int(indices.max())}"
            )
        return super().decode(look_up(self.codebook, indices))


def look_up(codebook: Tensor, indices: Tensor) -> Tensor:
    """codebook (n_embed, D), indices (B, h, w) -> the codes (B, D, h, w)."""
    return F.embedding(indices, codebook).permute(0, 3, 1, 2)  # (B, h, w, D) -> (B, D, h, w)


@torch.no_grad()
def nearest_codes(codebook: Tensor, z: Tensor) -> Tensor:
    """The rows of the codebook (n_embed, D) that are nearest to z (..., D), the first of equal ones: (...).

    In float32 at least, and from differences: the expanded form |z|^2 + |e|^2 - 2 z.e rounds differently
    for equal codes at different rows, and loses digits if codes are close to each other.
    """
    wide = torch.promote_types(z.dtype, torch.float32)
    codebook = codebook.to(wide)
    rows = max(1, MAX_DISTANCES // len(codebook))
    found = [
        torch.cdist(part, codebook, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
        for part in z.detach().flatten(0, -2).to(wide).split(rows)
    ]
    return torch.cat(found).reshape(z.shape[:-1])
