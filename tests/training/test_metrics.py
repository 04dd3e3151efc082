"""Measures against independent code (SciPy, and scikit-image's numbers) and against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from support.examples import examples
from torch import Tensor

from ldm_core.training.metrics import (
    cosine_similarity,
    frechet_distance,
    nearest_neighbours,
    psnr,
    retrieval_ranks,
    ssim,
    top_k_accuracy,
)


def pictures(seed: int, size: tuple[int, ...] = (3, 3, 24, 31)) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(seed))


def features(count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return mixed @ torch.randn(width, width, generator=generator, dtype=torch.float64) + seed


# --- pictures ---


def test_psnr_is_what_its_name_says() -> None:
    flat = torch.full((2, 3, 8, 8), 0.5)
    assert psnr(flat, flat + torch.tensor([0.1, 0.01])[:, None, None, None]).tolist() == pytest.approx(
        [20, 40], abs=1e-4
    )
    x, y = pictures(0).numpy().astype(np.float64), pictures(1).numpy().astype(np.float64)
    expected = [10 * math.log10(1 / ((a - b) ** 2).mean()) for a, b in zip(x, y)]
    assert psnr(pictures(0), pictures(1)).tolist() == pytest.approx(expected, rel=1e-12)
    assert psnr(flat, flat).tolist() == [math.inf, math.inf]


def scipy_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Of one plane each, (H, W): SciPy's Gaussian of radius 5, and windows within the picture only."""

    def windowed(values: np.ndarray) -> np.ndarray:
        return gaussian_filter(values, 1.5, radius=5)[5:-5, 5:-5]

    mx, my = windowed(x), windowed(y)
    vx, vy, cov = windowed(x * x) - mx**2, windowed(y * y) - my**2, windowed(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
def test_ssim_is_scipys(noise: float) -> None:
    x = pictures(0)
    y = (x + noise * (pictures(1) - 0.5)).clamp(0, 1)
    expected = [
        np.mean([scipy_ssim(a, b) for a, b in zip(xs.double().numpy(), ys.double().numpy())])
        for xs, ys in zip(x, y)
    ]
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-12)


def waves() -> tuple[Tensor, Tensor]:
    rows, columns = torch.meshgrid(*[torch.arange(32, dtype=torch.float64)] * 2, indexing="ij")
    x = torch.stack([0.5 + 0.5 * torch.sin(0.31 * rows + k * columns / 7) for k in range(3)])[None]
    y = 0.7 * x + 0.1 + 0.1 * torch.cos(0.9 * rows * columns / 5)
    return x, y


def test_ssim_is_scikit_images() -> None:
    """`skimage.metrics.structural_similarity(…, gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1, channel_axis=0)` of scikit-image 0.26.0."""
    assert float(ssim(*waves())) == pytest.approx(0.7845221039140928, abs=1e-9)


def test_ssim_of_equal_pictures_is_one_and_it_is_symmetric() -> None:
    x, y = pictures(0), pictures(1)
    assert ssim(x, x).tolist() == pytest.approx([1, 1, 1], abs=1e-12)
    assert torch.allclose(ssim(x, y), ssim(y, x), rtol=0, atol=1e-12)
    assert (ssim(x, 1 - x) < 0).all()


def test_pictures_that_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match=r"of the same shape, got \(3, 3, 24, 31\) and \(2, 3, 24, 31\)"):
        psnr(pictures(0), pictures(0)[:2])
    with pytest.raises(ValueError, match="two batches"):
        ssim(pictures(0)[0], pictures(0)[0])
    with pytest.raises(ValueError, match=r"at least 11×11 pixels, got \(10, 31\)"):
        ssim(pictures(0)[:, :, :10], pictures(0)[:, :, :10])


# --- features ---


@pytest.mark.parametrize(("count", "width"), [(200, 8), (40, 32), (10, 24), (50, 1)])
def test_frechet_distance_is_scipys(count: int, width: int) -> None:
    """The paper's own formula, with SciPy's root of a matrix that is not symmetric; also where there are
    fewer features than dimensions, so that the covariance is singular."""
    x, y = features(count, width, 0), features(count + 7, width, 1)
    s1, s2 = (np.atleast_2d(np.cov(f.numpy(), rowvar=False)) for f in (x, y))
    gap = x.mean(0).numpy() - y.mean(0).numpy()
    root = np.real(sqrtm(s1 @ s2))
    expected = float((gap**2).sum() + np.trace(s1 + s2 - 2 * root))
    # A singular matrix's root is known to half the digits only.
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9 if count > width else 1e-5)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-5)


def test_frechet_distance_of_independent_gaussians() -> None:
    """sum (m1 - m2)² + (s1 - s2)²: exact for features whose sample covariance is exactly diagonal."""
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).double()  # (16, 4): covariance 16/15 I
    unit = signs * math.sqrt(15 / 16)
    m1, m2 = torch.tensor([0.0, 1, 2, -3]), torch.tensor([0.5, 1, -2, 3])
    s1, s2 = torch.tensor([1.0, 2, 0, 0.1]), torch.tensor([3.0, 2, 1, 0])
    expected = float(((m1 - m2) ** 2 + (s1 - s2) ** 2).sum())
    assert frechet_distance(unit * s1 + m1, unit * s2 + m2) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_does_not_mind_rotations() -> None:
    x, y = features(60, 6, 0), features(60, 6, 1)
    turn, _ = torch.linalg.qr(features(6, 6, 2))
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(frechet_distance(x, y), rel=1e-9)


def test_features_that_cannot_be_compared() -> None:
    x = features(5, 3, 0)
    with pytest.raises(ValueError, match=r"got \(5, 3\) and \(5, 2\)"):
        frechet_distance(x, x[:, :2])
    with pytest.raises(ValueError, match="at least two features, got 1 and 5"):
        frechet_distance(x[:1], x)
    with pytest.raises(ValueError, match="finite features"):
        frechet_distance(x, x * math.nan)
    with pytest.raises(ValueError, match=r"k in 1\.\.5, the number of references, got 6"):
        nearest_neighbours(x, x, 6)


def test_nearest_neighbours() -> None:
    references = torch.eye(3)
    cosines, places = nearest_neighbours(torch.tensor([[10.0, 1, 0], [0, 1, 2]]), references, 2)
    assert places.tolist() == [[0, 1], [2, 1]]
    assert cosines[1].tolist() == pytest.approx([2 / 5**0.5, 1 / 5**0.5])
    x, y = features(7, 5, 0).numpy(), features(9, 5, 1).numpy()
    expected = (x @ y.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(y, axis=1)
    assert np.allclose(cosine_similarity(torch.from_numpy(x), torch.from_numpy(y)), expected, atol=1e-12)


@examples(50)
@given(count=st.integers(1, 6), references=st.integers(1, 12), seed=st.integers(0, 999))
def test_ranks_by_sorting(count: int, references: int, seed: int) -> None:
    """The place of the right label where labels are listed as their first picture comes in the order of
    nearness."""
    generator = torch.Generator().manual_seed(seed)
    x, y = features(count, 4, seed), features(references, 4, seed + 1)
    labels = torch.randint(5, (references,), generator=generator)
    targets = labels[torch.randint(references, (count,), generator=generator)]
    ranks = retrieval_ranks(x, y, labels, targets)
    for row, target, rank in zip(cosine_similarity(x, y), targets.tolist(), ranks.tolist()):
        in_order = labels[row.argsort(descending=True)].tolist()
        assert list(dict.fromkeys(in_order)).index(target) == rank


def test_features_that_tell_nothing_apart_score_nothing() -> None:
    labels = torch.arange(4)
    assert retrieval_ranks(torch.ones(4, 2), torch.ones(4, 2), labels, labels).tolist() == [3] * 4
    assert retrieval_ranks(torch.eye(4), torch.eye(4), labels, labels).tolist() == [0] * 4


def test_labels_must_fit() -> None:
    x = torch.eye(3)
    with pytest.raises(ValueError, match=r"no reference has the labels \[7\]"):
        retrieval_ranks(x, x, torch.arange(3), torch.tensor([0, 7, 1]))
    with pytest.raises(ValueError, match="one label per reference"):
        retrieval_ranks(x, x, torch.arange(2), torch.arange(3))


def test_accuracy() -> None:
    ranks = torch.tensor([0, 0, 1, 4, 5])
    assert [top_k_accuracy(ranks, k) for k in (1, 5, 6)] == [0.4, 0.8, 1.0]
    with pytest.raises(ValueError, match="at least one"):
        top_k_accuracy(ranks[:0], 1)
