"""Exercise 7: the nearest entry of a codebook (van den Oord et al. 2017, arXiv:1711.00937, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm_core.autoencoder.vq import look_up, nearest_codes
from ldm_core.exercises.expect import draw, expect_function, expect_pair, expect_values
from ldm_core.exercises.user_file import UserFile, Wrong

B, D, H, W, CODES = 2, 3, 4, 5, 12


def check(answer: UserFile) -> Iterator[str]:
    quantize = answer.get("quantize")
    h = draw(B, D, H, W, seed=0)
    codebook = draw(CODES, D, seed=1) * torch.linspace(0.5, 2, CODES)[:, None]  # of different lengths
    expected = nearest_codes(codebook, h.permute(0, 2, 3, 1))

    yield "the indices of the nearest codes"
    z_q, indices = expect_pair("z_q, indices", answer.call(quantize, h, codebook))
    expect_values("indices", indices, expected, lambda: _indices(h, codebook))
    yield "z_q: the codes, in the shape of h"
    codes = look_up(codebook, expected)
    expect_values("z_q", z_q, codes, lambda: _codes(h, codebook, expected))
    yield "gradients pass from z_q to h, as if z_q were h"
    _expect_gradients(answer, quantize, h, codebook)
    yield "the codes of codes are these codes"
    again, same = answer.call(quantize, codes, codebook)
    expect_values("the indices of codes", same, expected)
    expect_values("the codes of codes", again, codes)
    yield "the clauses for networks of ldm_core.testing"
    expect_function(answer, 7, "z_q", lambda h: quantize(h, codebook)[0].detach(), h=h)


def _indices(h: Tensor, codebook: Tensor) -> dict[str, Tensor]:
    z = h.permute(0, 2, 3, 1)
    distances = torch.cdist(z.reshape(-1, D), codebook).reshape(B, H, W, CODES)
    products = z @ codebook.T
    mixed = torch.cdist(h.reshape(-1, D), codebook).argmin(1).reshape(B, H, W)
    unit = torch.nn.functional.normalize(codebook, dim=1)
    nearest = distances.argmin(-1)
    return {
        "You take the farthest codes: argmax where argmin belongs.": distances.argmax(-1),
        "You take the codes of the largest product with z. The nearest code has the smallest distance "
        "|z - e|^2 = |z|^2 - 2 z·e + |e|^2; long codes win where |e|^2 is missing.": products.argmax(-1),
        "You take the codes of the smallest product with z.": products.argmin(-1),
        "You take the codes of the smallest angle, the cosine: the nearest code has the smallest distance.": (
            z @ unit.T
        ).argmax(-1),
        "You sum absolute differences: the distance is of squares, |z - e|^2.": torch.cdist(
            z.reshape(-1, D), codebook, p=1
        )
        .argmin(1)
        .reshape(B, H, W),
        "The vectors are mixed up: `h.reshape(-1, D)` cuts the memory into pieces, in which channels do not "
        "stand beside each other. Move the channels last first: `h.permute(0, 2, 3, 1)`.": mixed,
        "The vectors are mixed up: `h.reshape(-1, D)` cuts the memory into pieces, in which channels do not "
        "stand beside each other. Also, indices must have shape (B, h, w).": mixed.flatten(),
        "The indices are flat, (B * h * w,): give them the shape (B, h, w).": nearest.flatten(),
        "The indices are one-hot vectors or distances: take `argmin(dim=-1)`.": distances,
        "The sign in |z|^2 - 2 z·e + |e|^2 is wrong: you add 2 z·e.": (
            2 * products + codebook.square().sum(1)
        ).argmin(-1),
    }


def _codes(h: Tensor, codebook: Tensor, indices: Tensor) -> dict[str, Tensor]:
    codes = codebook[indices]
    return {
        "z_q has its channels last, (B, h, w, D): move them back with `.permute(0, 3, 1, 2)`.": codes,
        "z_q has the memory of (B, h, w, D) read as (B, D, h, w): `reshape` mixes up the values; "
        "`.permute(0, 3, 1, 2)` moves the axis.": codes.reshape(B, D, H, W),
        "z_q equals h. The straight-through form is h + (codes - h).detach(), whose value is that of the "
        "codes; with the parts swapped, codes + (h - codes).detach(), it is that of h.": h,
        "The straight-through form has the wrong sign: h - (codes - h).detach().": (
            2 * h - look_up(codebook, indices)
        ),
    }


def _expect_gradients(answer: UserFile, quantize: object, h: Tensor, codebook: Tensor) -> None:
    h, codebook = h.clone().requires_grad_(), codebook.clone().requires_grad_()
    weights = draw(B, D, H, W, seed=2)
    z_q, _ = answer.call(quantize, h, codebook)  # type: ignore[arg-type]
    if not z_q.requires_grad:
        raise Wrong(
            "z_q passes no gradients: it is detached, or computed under `no_grad`. argmin has no gradient; "
            "the straight-through form h + (codes - h).detach() passes that of z_q to h."
        )
    of_h, of_codes = torch.autograd.grad((z_q * weights).sum(), [h, codebook], allow_unused=True)
    if of_codes is not None and bool(of_codes.any()):
        lost = "" if of_h is not None and bool(of_h.any()) else " and h gets none"
        raise Wrong(
            f"The codebook gets gradients from z_q{lost}: the codes are not detached. The codebook learns "
            "from its own term of the loss; here the gradient goes to h alone: h + (codes - h).detach()."
        )
    if of_h is None or not bool(of_h.any()):
        raise Wrong("h gets no gradient from z_q: use the straight-through form h + (codes - h).detach().")
    expect_values("the gradient of h", of_h, weights)
