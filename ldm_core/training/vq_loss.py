"""The loss of an autoencoder with vector quantisation: the KL term of `autoencoder_loss` becomes

    L_reg = w_C (|sg[z] - e|^2 + beta |z - sg[e]|^2)

with the latents z, their nearest codes e and the stop-gradient sg: the first term moves codes to latents, the
second commits latents to codes (van den Oord et al. 2017, arXiv:1711.00937, equation 3). Gradients of the
reconstruction pass the quantiser unchanged. CompVis's counterparts are `VQLPIPSWithDiscriminator` and the
loss of `VectorQuantizer2`, whose `legacy` form puts beta on the other term.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_core.autoencoder.vq import AutoencoderVQ, look_up
from ldm_core.training.autoencoder_loss import Features, ReconstructionObjective
from ldm_core.training.discriminator import PatchDiscriminator
from ldm_core.training.objective import Metrics


@dataclass(frozen=True)
class AutoencoderVQLossWeights:
    """The weights of the loss terms and the steps at which they start.

    codebook: w_C. beta: the weight of the commitment within it. legacy: put beta on the codebook's term
        instead, as the published models were trained.
    perceptual, adversarial, l1_start, adversarial_start: as in `AutoencoderLossWeights`.
    """

    perceptual: float = 1.0
    codebook: float = 1.0
    beta: float = 0.25
    legacy: bool = False
    adversarial: float = 0.75
    l1_start: int = 0
    adversarial_start: int = 250_001


class AutoencoderVQObjective(ReconstructionObjective):
    """Trains a VQ autoencoder, optionally with a discriminator. Batches have "image".

    Its metrics have the codebook's loss and the "perplexity" of the codes in a batch: the number of codes in
    use if all of these are equally frequent, and 1 if the codebook has collapsed to one code.

    features: as in `ReconstructionObjective`. weights: see `AutoencoderVQLossWeights`.
    """

    autoencoder: AutoencoderVQ
    weights: AutoencoderVQLossWeights

    def __init__(
        self,
        autoencoder: AutoencoderVQ,
        *,
        features: Features | None = None,
        discriminator: PatchDiscriminator | None = None,
        weights: AutoencoderVQLossWeights | None = None,
    ) -> None:
        super().__init__(autoencoder, features, discriminator, weights or AutoencoderVQLossWeights())

    def reconstruct(
        self, images: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor, Metrics]:
        """The codes decoded, the codebook's loss, and the metrics "codebook" and "perplexity"."""
        z = self.autoencoder.encode(images).latents.float()
        z_q, indices = self.autoencoder.quantize(z)
        decoded = self.autoencoder.decode(z_q, quantize=False).float()
        codes = look_up(self.autoencoder.codebook, indices)
        loss = codebook_loss(z, codes, beta=self.weights.beta, legacy=self.weights.legacy)
        metrics = {"codebook": loss, "perplexity": perplexity(indices)}
        return decoded, self.weights.codebook * loss, metrics


def codebook_loss(z: Tensor, codes: Tensor, *, beta: float = 0.25, legacy: bool = False) -> Tensor:
    """Latents z and their codes, of one shape -> |sg[z] - e|^2 + beta |z - sg[e]|^2, means over all values.

    legacy: |z - sg[e]|^2 + beta |sg[z] - e|^2, as in CompVis's code. The value is the same.
    """
    codebook = (codes - z.detach()).square().mean()
    commitment = (z - codes.detach()).square().mean()
    return commitment + beta * codebook if legacy else codebook + beta * commitment


def perplexity(indices: Tensor) -> Tensor:
    """The exponential of the entropy of the codes' frequencies: a scalar from 1 to the number of codes."""
    counts = torch.bincount(indices.flatten())
    return torch.special.entr(counts / counts.sum()).sum().exp()
