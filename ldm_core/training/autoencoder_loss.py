"""The autoencoders' loss: reconstruction, perceptual, regularisation and adversarial terms.

    L = |x - x'| + w_p L_perceptual + L_reg + lambda w_G (-D(x'))
    L_reg = w_KL KL(q(z|x) || N(0, 1)) here; that of vector quantisation is in `vq_loss`
    lambda = ||grad L_rec|| / (||grad L_G|| + 1e-4), gradients by the weights of the decoder's last layer

Latent diffusion paper (arXiv:2112.10752), section 3.1 and appendix G, equation 25; lambda is equation 7 of
taming transformers (Esser et al. 2021, arXiv:2012.09841). CompVis's counterpart:
`LPIPSWithDiscriminator` of `ldm.modules.losses.contperceptual`, which sums the terms over an image where this
module takes means; the relative weights of the terms are the same.

CompVis runs two forward passes per batch, one for the autoencoder and one for the discriminator. Here one
pass trains both: the autoencoder's loss detaches the discriminator's weights, and the discriminator's loss
detaches the reconstruction.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ldm_core.autoencoder.base import AutoencoderBase
from ldm_core.autoencoder.gaussian import DiagonalGaussian
from ldm_core.autoencoder.kl import AutoencoderKL
from ldm_core.training.discriminator import PatchDiscriminator, hinge_loss
from ldm_core.training.distributed import mean_over_processes
from ldm_core.training.objective import Batch, Metrics, Objective, require_float32

Features = Callable[[Tensor], Sequence[Tensor]]  # images (B, 3, H, W) in [-1, 1] to feature maps (B, C, h, w)

MAX_ADAPTIVE_WEIGHT = 1e4
FIRST_LOGVAR = -6.0


@dataclass(frozen=True)
class AutoencoderLossWeights:
    """The weights of the loss terms and the steps at which they start.

    perceptual: w_p. kl: w_KL, for the KL divergence summed over a latent against the error summed over an
        image.
    adversarial: w_G.
    l1_start: the first step with the absolute error as reconstruction term; before, it is the squared error.
        The absolute error alone first learns the median, which is plain white for images on white.
    adversarial_start: the first step that trains the discriminator and uses the adversarial term.
    """

    perceptual: float = 1.0
    kl: float = 1e-6
    adversarial: float = 0.5
    l1_start: int = 0
    adversarial_start: int = 50_001


class LossWeights(Protocol):
    """The weights that the losses of all autoencoders have; see `AutoencoderLossWeights`."""

    @property
    def perceptual(self) -> float: ...
    @property
    def adversarial(self) -> float: ...
    @property
    def l1_start(self) -> int: ...
    @property
    def adversarial_start(self) -> int: ...


class ReconstructionObjective(Objective):
    """Trains an autoencoder, optionally with a discriminator. Batches have "image".

    features: a network whose feature maps define the perceptual loss; it is frozen. Without one, the
        perceptual loss is `multiscale_gradient_loss`.
    """

    autoencoder: AutoencoderBase
    weights: LossWeights

    def __init__(
        self,
        autoencoder: AutoencoderBase,
        features: Features | None,
        discriminator: PatchDiscriminator | None,
        weights: LossWeights,
    ) -> None:
        super().__init__()
        require_float32(autoencoder, "autoencoder")
        self.autoencoder = autoencoder.requires_grad_(True)
        self.discriminator = discriminator
        self.weights = weights
        if isinstance(features, nn.Module):
            features.requires_grad_(False).eval()
        self._features = (features,)  # a tuple, so that it is not registered as a submodule

    @abstractmethod
    def reconstruct(
        self, images: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor, Metrics]:
        """images (B, 3, H, W) -> (decoded images in float32, the regularisation L_reg, metrics)."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group per network, so that their gradients are clipped separately."""
        trained = [p for p in self.autoencoder.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"params": trained}]
        if self.discriminator is not None:
            start = self.weights.adversarial_start
            groups.append({"params": list(self.discriminator.parameters()), "start": start})
        return groups

    def loss(self, batch: Batch, generators: Sequence[torch.Generator], step: int) -> tuple[Tensor, Metrics]:
        weights = self.weights
        images = batch["image"].to(next(self.autoencoder.parameters()))
        decoded, regularisation, regularised = self.reconstruct(images, generators)

        difference = decoded - images
        error = difference.abs().mean() if step >= weights.l1_start else difference.square().mean()
        perceptual = self.perceptual(images, decoded)
        reconstruction = error + weights.perceptual * perceptual
        loss = reconstruction + regularisation
        metrics = {"error": error, "mse": difference.square().mean(), "perceptual": perceptual}
        metrics |= regularised
        if self.discriminator is not None:
            adversarial, more = self._adversarial(images, decoded, reconstruction, step)
            loss, metrics = loss + adversarial, metrics | more
        return loss, {name: value.detach() for name, value in metrics.items()}

    def perceptual(self, images: Tensor, decoded: Tensor) -> Tensor:
        """The perceptual distance between two batches of images: a scalar, 0 if equal."""
        (features,) = self._features
        if features is None:
            return multiscale_gradient_loss(images, decoded)
        with torch.no_grad():
            wanted = [_unit(f) for f in features(images)]
        got = [_unit(f) for f in features(decoded)]
        return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in zip(got, wanted)]).mean()

    def _adversarial(
        self, images: Tensor, decoded: Tensor, reconstruction: Tensor, step: int
    ) -> tuple[Tensor, Metrics]:
        """The generator's and the discriminator's losses, summed, and their metrics."""
        discriminator = self.discriminator
        assert discriminator is not None
        if step == 0:
            _require_accepted(discriminator, images)
        if step < self.weights.adversarial_start:
            # Zero gradients rather than none: DistributedDataParallel waits for every parameter's gradient.
            idle = sum((p.sum() for p in discriminator.parameters()), torch.zeros(())) * 0.0
            zero = torch.zeros((), device=images.device)
            return idle, {"generator": zero, "discriminator": zero, "adaptive_weight": zero}
        constant = {name: p.detach() for name, p in discriminator.named_parameters()}
        generator = -functional_call(discriminator, constant, (decoded,)).float().mean()
        weight = self._adaptive_weight(reconstruction, generator)
        hinge = hinge_loss(discriminator(images).float(), discriminator(decoded.detach()).float())
        loss = self.weights.adversarial * weight * generator + hinge
        return loss, {"generator": generator, "discriminator": hinge, "adaptive_weight": weight}

    def _adaptive_weight(self, reconstruction: Tensor, generator: Tensor) -> Tensor:
        """lambda: equalizes the norms of both losses' gradients by the last layer's weights."""
        last = self.autoencoder.decoder.conv_out.weight
        norms = [
            mean_over_processes(torch.autograd.grad(loss, last, retain_graph=True)[0]).norm()
            for loss in (reconstruction, generator)
        ]
        return (norms[0] / (norms[1] + 1e-4)).clamp(0, MAX_ADAPTIVE_WEIGHT).detach()


class AutoencoderObjective(ReconstructionObjective):
    """Trains a KL autoencoder, optionally with a discriminator. Batches have "image".

    features: as in `ReconstructionObjective`. weights: see `AutoencoderLossWeights`.
    train_encoder: if False, the encoder and `quant_conv` are frozen and only the decoder is trained, so that
        a U-Net trained on the latents stays valid. The KL divergence, then constant, is left out of the loss.
    """

    autoencoder: AutoencoderKL
    weights: AutoencoderLossWeights

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        *,
        features: Features | None = None,
        discriminator: PatchDiscriminator | None = None,
        weights: AutoencoderLossWeights | None = None,
        train_encoder: bool = True,
    ) -> None:
        super().__init__(autoencoder, features, discriminator, weights or AutoencoderLossWeights())
        self.train_encoder = train_encoder
        if not train_encoder:
            autoencoder.encoder.requires_grad_(False)
            autoencoder.quant_conv.requires_grad_(False)

    def reconstruct(
        self, images: Tensor, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor, Metrics]:
        """A sample decoded, the KL divergence per value of the image, and the metric "kl"."""
        with nullcontext() if self.train_encoder else torch.no_grad():
            encoded = self.autoencoder.encode(images)
        # The KL sums over a latent, which needs more precision than autocast may leave.
        posterior = DiagonalGaussian(encoded.mean.float(), encoded.logvar.float())
        decoded = self.autoencoder.decode(posterior.sample(generators)).float()
        kl = posterior.kl().mean() / images[0].numel()
        regularisation = self.weights.kl * kl if self.train_encoder else torch.zeros_like(kl)
        return decoded, regularisation, {"kl": kl}


@torch.no_grad()
def _require_accepted(discriminator: PatchDiscriminator, images: Tensor) -> None:
    """Raises ValueError at step 0 for images that are too small, instead of at `adversarial_start`."""
    try:
        discriminator(images)
    except RuntimeError as error:
        size = "x".join(str(side) for side in images.shape[2:])
        raise ValueError(f"the discriminator cannot process images of {size} pixels ({error})") from error


def multiscale_gradient_loss(images: Tensor, decoded: Tensor, scales: int = 3) -> Tensor:
    """The mean absolute error of the images' horizontal and vertical gradients, averaged over scales 1, 1/2,
    ….

    Unlike the pixel error, it weights edges (gradient difference loss, Mathieu et al. 2016, arXiv:1511.05440,
    equation 6). images, decoded: (B, C, H, W).
    """
    total = torch.zeros((), device=images.device)
    difference = decoded - images  # gradients and pooling are linear
    for _ in range(scales):
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return total / (2 * scales)


def _unit(features: Tensor) -> Tensor:
    """Normalise each pixel's feature vector (LPIPS, Zhang et al. 2018, arXiv:1801.03924, equation 1)."""
    features = features.float()
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


@torch.no_grad()
def init_logvar(autoencoder: AutoencoderKL, logvar: float = FIRST_LOGVAR) -> None:
    """Initialise the bias of a new autoencoder's log-variances to `logvar`, in place.

    With the default initialisation, near 0, samples of the posterior are mostly noise and training starts
    slowly.
    """
    autoencoder.quant_conv.bias[autoencoder.config.embed_dim :] = logvar  # type: ignore[index]
