"""Measures of what a model has learnt: of pictures against pictures, and of features against features.

PSNR and SSIM (Wang, Bovik, Sheikh and Simoncelli 2004, "Image Quality Assessment: From Error Visibility to
Structural Similarity") say how well an autoencoder reconstructs. The Fréchet distance (Heusel et al. 2017,
arXiv:1706.08500, equation 6) says how far generated pictures are, as a whole, from real ones in the features
of some network; retrieval says whether each of them shows what was asked for, and its nearest training
picture whether it was copied. CompVis's counterpart: `scripts/` has none; its papers used torch-fidelity.

Letters: B pictures, C channels, H W pixels; N generated and M reference features of length D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # pixels: the Gaussian window of SSIM
K1, K2 = 0.01, 0.03  # SSIM's constants, relative to the range of the values


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, (B,) float64; infinite for equal pictures.

    images, targets: (B, C, H, W) in [0, 1]; more is better. Raises ValueError for shapes that differ.
    """
    images, targets = _pair(images, targets)
    return -10 * torch.log10((images - targets).square().mean(dim=(1, 2, 3)))


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each picture, (B,) float64 in [-1, 1], 1 for equal pictures.

    Equation 13 of the paper in every window that lies within the picture, averaged over windows and
    channels; the window is a Gaussian of 11×11 pixels with sigma 1.5, and variances are those of the
    population. images, targets: (B, C, H, W) in [0, 1], at least 11 pixels each way.
    Raises ValueError for shapes that differ, or smaller pictures.
    """
    x, y = _pair(images, targets)
    if min(x.shape[2:]) < WINDOW:
        raise ValueError(f"expected pictures of at least {WINDOW}×{WINDOW} pixels, got {tuple(x.shape[2:])}")
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x = _windowed(x * x) - mean_x**2
    variance_y = _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * covariance + K2**2) / (variance_x + variance_y + K2**2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def frechet_distance(features: Tensor, references: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians with the mean and covariance of two sets of features.

    |m1 - m2|² + tr(S1 + S2 - 2 (S1^½ S2 S1^½)^½), in float64. The product in the middle is symmetric, so
    that both roots come from its eigenvalues; S1 S2, of which the paper takes the root, has the same ones.
    features: (N, D); references: (M, D). 0 is the best. It falls with N, so compare at one N only.
    Raises ValueError for other shapes, fewer than two features, or values that are not finite.
    """
    features, references = _features(features, references)
    if min(len(features), len(references)) < 2:
        raise ValueError(f"expected at least two features, got {len(features)} and {len(references)}")
    means = [x.mean(dim=0) for x in (features, references)]
    covariances = [torch.cov(x.T).reshape(x.shape[1], -1) for x in (features, references)]  # (D, D)
    eigenvalues, eigenvectors = torch.linalg.eigh(covariances[0])
    root = (eigenvectors * eigenvalues.clamp(min=0).sqrt()) @ eigenvectors.T
    middle = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0)
    traces = covariances[0].trace() + covariances[1].trace() - 2 * middle.sqrt().sum()
    return max(0.0, float((means[0] - means[1]).square().sum() + traces))


def cosine_similarity(features: Tensor, references: Tensor) -> Tensor:
    """Cosines of the angles between features (N, D) and references (M, D): (N, M) float64."""
    features, references = _features(features, references)
    return F.normalize(features, dim=1) @ F.normalize(references, dim=1).T


def nearest_neighbours(features: Tensor, references: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """(cosines (N, k), indices (N, k)) of each feature's k nearest references, the nearest first.

    Raises ValueError unless 1 <= k <= M.
    """
    if not 1 <= k <= len(references):
        raise ValueError(f"expected k in 1..{len(references)}, the number of references, got {k}")
    cosines, places = cosine_similarity(features, references).topk(k, dim=1)
    return cosines, places


def retrieval_ranks(features: Tensor, references: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """How many labels are nearer to each feature than its target is: (N,) int64, 0 where it is the nearest.

    A label is as near as the nearest of its references; one that is exactly as near as the target counts
    as nearer, so that features which tell nothing apart score nothing.
    features: (N, D). references: (M, D) with labels (M,) int64 from 0. targets: (N,) int64, labels.
    Raises ValueError for a target that no reference has.
    """
    if labels.shape != (len(references),) or targets.shape != (len(features),):
        raise ValueError(
            f"expected one label per reference ({len(references)}) and one target per feature "
            f"({len(features)}), got {tuple(labels.shape)} and {tuple(targets.shape)}"
        )
    missing = set(targets.tolist()) - set(labels.tolist())
    if missing:
        raise ValueError(f"no reference has the labels {sorted(missing)[:8]}")
    cosines = cosine_similarity(features, references)
    nearness = torch.full((len(features), int(labels.max()) + 1), -torch.inf, dtype=cosines.dtype)
    nearness = nearness.scatter_reduce(1, labels.expand(len(features), -1), cosines, "amax")
    own = nearness.gather(1, targets[:, None])
    return (nearness >= own).sum(dim=1) - 1


def top_k_accuracy(ranks: Tensor, k: int) -> float:
    """The share, 0..1, of ranks (N,) below k: how often the right label is among the k nearest."""
    if len(ranks) == 0:
        raise ValueError("expected at least one rank")
    return float((ranks < k).double().mean())


def _pair(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if images.ndim != 4 or images.shape != targets.shape:
        raise ValueError(
            f"expected two batches (B, C, H, W) of one shape, got {tuple(images.shape)} "
            f"and {tuple(targets.shape)}"
        )
    return images.detach().cpu().double(), targets.detach().cpu().double()


def _windowed(x: Tensor) -> Tensor:
    """Weighted means of the windows within (B, C, H, W): (B, C, H - 10, W - 10)."""
    steps = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    weights = torch.exp(-(steps**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).reshape(1, 1, -1)  # (1, 1, 11)
    planes = x.flatten(0, 1)[:, None]  # (B C, 1, H, W)
    planes = F.conv2d(F.conv2d(planes, weights[:, :, :, None]), weights[:, :, None, :])
    return planes.reshape(*x.shape[:2], *planes.shape[2:])


def _features(features: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    if features.ndim != 2 or references.ndim != 2 or features.shape[1] != references.shape[1]:
        raise ValueError(
            f"expected features (N, D) and references (M, D), got {tuple(features.shape)} "
            f"and {tuple(references.shape)}"
        )
    pair = features.detach().cpu().double(), references.detach().cpu().double()
    if not all(bool(x.isfinite().all()) for x in pair):
        raise ValueError("expected finite features, got some that are infinite or not a number")
    return pair
