"""The loss of the autoencoder: reconstruction, perceptual term, KL, and a discriminator's opinion.

    L = |x - x'| + w_p L_perceptual + w_KL KL(q(z|x) || N(0, 1)) + lambda w_G (-D(x'))
    lambda = ||grad L_rec|| / (||grad L_G|| + 1e-4), by the weights of the decoder's last layer

Latent diffusion paper (arXiv:2112.10752), section 3.1 and appendix G, equation 25; lambda is equation 7 of
taming transformers (Esser et al. 2021, arXiv:2012.09841). CompVis's counterpart:
`LPIPSWithDiscriminator` of `ldm.modules.losses.contperceptual`, which sums over an image where this takes
means over its values, so that every weight means the same in both.

CompVis shows each batch to the autoencoder and then again to the discriminator. Here both learn from one
pass: the discriminator's weights are constants in the autoencoder's loss, and the reconstruction is one in
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

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
    """How much each term counts, and from which step on.

    l1_start: reconstruction is the squared error before this step and the absolute error from it on. The
        absolute error alone begins by learning the median, which is plain white where grounds are white.
    kl: the paper's 1e-6, for the KL of a whole latent against the summed error of a whole image.
    adversarial, adversarial_start: w_G, and the step from which the discriminator learns and is heard.
    """

    perceptual: float = 1.0
    kl: float = 1e-6
    adversarial: float = 0.5
    l1_start: int = 0
    adversarial_start: int = 50_001


class AutoencoderObjective(Objective):
    """Trains an autoencoder, and a discriminator against it if one is given. Batches have "image".

    features: a network that gives the feature maps in which pictures are compared, frozen here; without one,
        pictures are compared by their gradients at several scales.
    weights: see `AutoencoderLossWeights`.
    """

    def __init__(
        self,
        autoencoder: AutoencoderKL,
        *,
        features: Features | None = None,
        discriminator: PatchDiscriminator | None = None,
        weights: AutoencoderLossWeights | None = None,
    ) -> None:
        super().__init__()
        require_float32(autoencoder, "autoencoder")
        self.autoencoder = autoencoder.requires_grad_(True)
        self.discriminator = discriminator
        self.weights = weights or AutoencoderLossWeights()
        if isinstance(features, nn.Module):
            features.requires_grad_(False).eval()
        self._features = (features,)  # in a tuple, it is not one of this module's own

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The players one by one, so that a large gradient of one does not clip the other's."""
        groups: list[dict[str, Any]] = [{"params": list(self.autoencoder.parameters())}]
        if self.discriminator is not None:
            start = self.weights.adversarial_start
            groups.append({"params": list(self.discriminator.parameters()), "start": start})
        return groups

    def loss(self, batch: Batch, generators: Sequence[torch.Generator], step: int) -> tuple[Tensor, Metrics]:
        weights = self.weights
        images = batch["image"].to(next(self.autoencoder.parameters()))
        encoded = self.autoencoder.encode(images)
        # A sum over a latent has no room in 8 bits, which autocast may have left of it.
        posterior = DiagonalGaussian(encoded.mean.float(), encoded.logvar.float())
        decoded = self.autoencoder.decode(posterior.sample(generators)).float()

        difference = decoded - images
        error = difference.abs().mean() if step >= weights.l1_start else difference.square().mean()
        perceptual = self.perceptual(images, decoded)
        kl = posterior.kl().mean() / images[0].numel()
        reconstruction = error + weights.perceptual * perceptual
        loss = reconstruction + weights.kl * kl
        metrics = {"error": error, "mse": difference.square().mean(), "perceptual": perceptual, "kl": kl}
        if self.discriminator is not None:
            players, opinions = self._adversarial(images, decoded, reconstruction, step)
            loss, metrics = loss + players, metrics | opinions
        return loss, {name: value.detach() for name, value in metrics.items()}

    def perceptual(self, images: Tensor, decoded: Tensor) -> Tensor:
        """How different two batches of pictures look: a scalar, 0 for the same."""
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
        """(what both players add to the loss, what is logged of them)."""
        discriminator = self.discriminator
        assert discriminator is not None
        if step == 0:
            _require_seen(discriminator, images)
        if step < self.weights.adversarial_start:
            # Its gradients are zeros and not missing, which other processes would wait for.
            idle = sum((p.sum() for p in discriminator.parameters()), torch.zeros(())) * 0.0
            zero = torch.zeros((), device=images.device)
            return idle, {"generator": zero, "discriminator": zero, "adaptive_weight": zero}
        constant = {name: p.detach() for name, p in discriminator.named_parameters()}
        generator = -functional_call(discriminator, constant, (decoded,)).float().mean()
        weight = self._adaptive_weight(reconstruction, generator)
        judged = hinge_loss(discriminator(images).float(), discriminator(decoded.detach()).float())
        players = self.weights.adversarial * weight * generator + judged
        return players, {"generator": generator, "discriminator": judged, "adaptive_weight": weight}

    def _adaptive_weight(self, reconstruction: Tensor, generator: Tensor) -> Tensor:
        """lambda: it makes the discriminator's pull on the last layer as strong as the reconstruction's."""
        last = self.autoencoder.decoder.conv_out.weight
        norms = [
            mean_over_processes(torch.autograd.grad(loss, last, retain_graph=True)[0]).norm()
            for loss in (reconstruction, generator)
        ]
        return (norms[0] / (norms[1] + 1e-4)).clamp(0, MAX_ADAPTIVE_WEIGHT).detach()


@torch.no_grad()
def _require_seen(discriminator: PatchDiscriminator, images: Tensor) -> None:
    """Raises ValueError for pictures that are too small, which else would show when its turn comes."""
    try:
        discriminator(images)
    except RuntimeError as error:
        size = "x".join(str(side) for side in images.shape[2:])
        raise ValueError(f"the discriminator cannot look at pictures of {size} pixels ({error})") from error


def multiscale_gradient_loss(images: Tensor, decoded: Tensor, scales: int = 3) -> Tensor:
    """The mean absolute difference of the pictures' horizontal and vertical differences, at 1, 1/2, 1/4, …
    size.

    It sees edges, which the eye does too, where the pixels' error sees only areas (as in Mathieu et al. 2016,
    arXiv:1511.05440, equation 6).
    """
    total = torch.zeros((), device=images.device)
    difference = decoded - images  # differences and pooling are linear, so they can be taken of this
    for _ in range(scales):
        total = total + difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()
        difference = F.avg_pool2d(difference, 2)
    return total / (2 * scales)


def _unit(features: Tensor) -> Tensor:
    """Each pixel's feature vector with length 1 (LPIPS, Zhang et al. 2018, arXiv:1801.03924, equation 1)."""
    features = features.float()
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)


@torch.no_grad()
def init_logvar(autoencoder: AutoencoderKL, logvar: float = FIRST_LOGVAR) -> None:
    """Let a new autoencoder's log-variances start near `logvar`, in place, by its last encoder layer's bias.

    At the usual start, near 0, the decoder would see little but noise and take long to listen to the encoder.
    """
    autoencoder.quant_conv.bias[autoencoder.config.embed_dim :] = logvar  # type: ignore[index]
