"""Operations on CLIP embeddings of pictures: mixtures and differences of texts (arXiv:2204.06125, section 3).

    slerp(a, b, u) = sin((1 - u) w) / sin(w) a + sin(u w) / sin(w) b,    cos w = <a, b>, |a| = |b| = 1
    towards a text: slerp(e, d, u),   d = (z_t - z_0) / |z_t - z_0|,   z: CLIP's embeddings of two texts

(Shoemake 1985 for slerp.) The mean of several is the point of the sphere with the smallest weighted sum of
squared angles (Buss and Fillmore 2001, algorithm A1), and equals slerp for two. Lengths, which models like
stable unCLIP also see, are interpolated linearly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-9
ROUNDS = 100  # of the mean's iteration; CLIP's embeddings need about five


def slerp(a: Tensor, b: Tensor, amount: float) -> Tensor:
    """The vectors a share `amount` of the way from a to b along the sphere: (..., D), in a's dtype.

    amount: in [0, 1]; 0 gives a. Raises ValueError for vectors of length 0, and for opposite ones, between
    which no way is the shortest.
    """
    start, end = _units(a), _units(b)
    # Accurate for small angles, too, where the arc cosine is not.
    halves = (end - start).norm(dim=-1, keepdim=True), (end + start).norm(dim=-1, keepdim=True)
    if bool((halves[1] < TINY).any()):
        raise ValueError("slerp: the vectors are opposite, so there is no shortest way between them")
    angle = 2 * torch.atan2(*halves)
    ratio = torch.sinc(amount * angle / torch.pi) / torch.sinc(angle / torch.pi)
    other = torch.sinc((1 - amount) * angle / torch.pi) / torch.sinc(angle / torch.pi)
    lengths = [x.double().norm(dim=-1, keepdim=True) for x in (a, b)]
    length = (1 - amount) * lengths[0] + amount * lengths[1]
    return (length * ((1 - amount) * other * start + amount * ratio * end)).to(a.dtype)


def spherical_mean(vectors: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of vectors (n, D) on the sphere: (D,), in their dtype.

    weights: (n,), 0 or more with a positive sum. Raises ValueError for vectors of length 0, and if they
    cancel.
    """
    weights = (weights.double() / weights.double().sum())[:, None]
    units = _units(vectors)
    mean = (weights * units).sum(dim=0)
    if float(mean.detach().norm()) < TINY:
        raise ValueError("the embeddings cancel: they have no mean on the sphere")
    mean = F.normalize(mean, dim=0)
    for _ in range(ROUNDS):
        shift = (weights * _log(mean, units)).sum(dim=0)
        size = shift.norm()
        if float(size.detach()) < TINY:
            break
        mean = F.normalize(size.cos() * mean + size.sin() * shift / size, dim=0)
    length = (weights * vectors.double().norm(dim=1, keepdim=True)).sum()
    return (length * mean).to(vectors.dtype)


def difference(towards: Tensor, away: Tensor) -> Tensor:
    """The direction from one text's embedding to another's, of length 1: (D,) and (D,) -> (D,).

    Raises ValueError for texts with the same embedding.
    """
    step = _units(towards) - _units(away)
    if float(step.detach().norm()) < 1e-6:
        raise ValueError("the two texts have the same embedding: there is no direction between them")
    return F.normalize(step, dim=-1).to(towards.dtype)


def turned(embeddings: Tensor, direction: Tensor, amount: float) -> Tensor:
    """Embeddings (..., D) turned towards a direction (D,), with their lengths kept.

    amount: share of the angle, in [0, 1]; 0.25 to 0.5 in the paper.
    """
    lengths = embeddings.norm(dim=-1, keepdim=True)
    return slerp(embeddings, lengths * _units(direction).to(embeddings), amount)


def _log(mean: Tensor, units: Tensor) -> Tensor:
    """The tangents at `mean` (D,) that lead to the points (n, D); opposite points are left out."""
    cosines = units @ mean
    flat = units - cosines[:, None] * mean
    sines = flat.norm(dim=1)
    angles = torch.atan2(sines, cosines)
    return torch.where(sines[:, None] > TINY, angles[:, None] * flat / sines.clamp(min=TINY)[:, None], 0.0)


def _units(x: Tensor) -> Tensor:
    """The vectors with length 1, in float64."""
    x = x.double()
    lengths = x.norm(dim=-1, keepdim=True)
    if not bool((lengths.isfinite() & (lengths > TINY)).all()):
        raise ValueError("expected finite embeddings with lengths above 0")
    return x / lengths
