"""Evaluation metrics of images (PSNR, SSIM) and of features (Fréchet distance, retrieval accuracy).

PSNR and SSIM (Wang, Bovik, Sheikh and Simoncelli 2004, "Image Quality Assessment: From Error Visibility to
Structural Similarity") measure reconstructions. The Fréchet distance (Heusel et al. 2017, arXiv:1706.08500,
equation 6) compares the distributions of generated and real images in a network's features. Retrieval ranks
measure how well images match their prompts, and nearest neighbours in the training data find copies.
CompVis's papers used torch-fidelity.

Letters: B images, C channels, H W pixels; N generated and M reference features of length D.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # pixels: the Gaussian window of SSIM
K1, K2 = 0.01, 0.03  # SSIM's constants, relative to the range of the values


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (B,) float64; higher is better, infinite if equal.

    images, targets: (B, C, H, W) in [0, 1]. Raises ValueError if the shapes differ.
    """
    images, targets = _pair(images, targets)
    return -10 * torch.log10((images - targets).square().mean(dim=(1, 2, 3)))


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarity of each image, (B,) float64 in [-1, 1]; 1 for equal images.

    Equation 13 of the paper, averaged over channels and all windows within the image; the window is a
    Gaussian of 11×11 pixels with sigma 1.5, and variances are population variances.
    images, targets: (B, C, H, W) in [0, 1], at least 11×11 pixels. Raises ValueError for other shapes.
    """
    x, y = _pair(images, targets)
    if min(x.shape[2:]) < WINDOW:
        raise ValueError(f"expected images of at least {WINDOW}×{WINDOW} pixels, got {tuple(x.shape[2:])}")
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x = _windowed(x * x) - mean_x**2
    variance_y = _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    structure = (2 * covariance + K2**2) / (variance_x + variance_y + K2**2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def frechet_distance(features: Tensor, references: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of features; 0 is the best.

    |m1 - m2|² + tr(S1 + S2 - 2 (S1^½ S2 S1^½)^½), in float64. S1^½ S2 S1^½ is symmetric and has the
    eigenvalues of S1 S2, whose square root the paper takes. The distance decreases with N: compare at equal N
    only.

    features: (N, D); references: (M, D).
    Raises ValueError for other shapes, fewer than two features, or non-finite values.
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
    """Cosine similarities of features (N, D) and references (M, D): (N, M) float64."""
    features, references = _features(features, references)
    return F.normalize(features, dim=1) @ F.normalize(references, dim=1).T


def nearest_neighbours(features: Tensor, references: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Cosine similarities (N, k) and indices (N, k) of each feature's k nearest references, nearest first.

    Raises ValueError unless 1 <= k <= M.
    """
    if not 1 <= k <= len(references):
        raise ValueError(f"expected k in 1..{len(references)}, the number of references, got {k}")
    cosines, places = cosine_similarity(features, references).topk(k, dim=1)
    return cosines, places


def retrieval_ranks(features: Tensor, references: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """The number of labels that are nearer to each feature than its target: (N,) int64, 0 is the best.

    The similarity of a label is that of its nearest reference. Ties count against the target, so that
    constant features get no credit.

    features: (N, D). references: (M, D). labels: (M,) int64 from 0. targets: (N,) int64, labels.
    Raises ValueError for a target without a reference.
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
    """The fraction of ranks (N,) below k: how often the target is among the k nearest labels."""
    if len(ranks) == 0:
        raise ValueError("expected at least one rank, got none")
    return float((ranks < k).double().mean())


def _pair(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if images.ndim != 4 or images.shape != targets.shape:
        raise ValueError(
            f"expected two batches (B, C, H, W) of the same shape, got {tuple(images.shape)} "
            f"and {tuple(targets.shape)}"
        )
    return images.detach().cpu().double(), targets.detach().cpu().double()


def _windowed(x: Tensor) -> Tensor:
    """Gaussian-weighted means over all windows of (B, C, H, W): (B, C, H - 10, W - 10)."""
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
        raise ValueError("expected finite features, got infinite or NaN values")
    return pair
